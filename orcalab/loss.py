"""Loss on targets only: hidden states of targets through the output layer, a chunk at a time, never all logits at once."""

import torch
import torch.nn.functional as F

from orcalab.attention import gathering, hidden

# torch 2.13 has F.linear_cross_entropy. Ours stays, because it gives each target's loss, and their sum in fp32: for bf16 states torch's comes back in
# bf16 (11264 for 11244.8), and its gradients are half as exact. On a CPU torch's is 1.6 times as fast in its best setting, ten times slower in its own choice.


class _TargetLoss(torch.autograd.Function):
    """Sum of cross-entropies behind a plain output layer; logits live in cache, gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx, states, weight, labels, chunk):
        losses = torch.empty(len(labels), dtype=torch.float32, device=states.device)
        for_states, for_weight = ctx.needs_input_grad[:2]
        grad_states = torch.empty_like(states) if for_states else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        for at in range(0, len(labels), chunk):
            s, y = states[at : at + chunk], labels[at : at + chunk, None]
            logits = (s @ weight.T).float()
            logits -= logits.amax(-1, keepdim=True)
            own = logits.gather(1, y)
            total = logits.exp_().sum(-1, keepdim=True)
            losses[at : at + chunk] = (total.log() - own)[:, 0]
            if for_states or for_weight:
                grad = logits.div_(total).scatter_add_(1, y, -torch.ones_like(own)).to(states.dtype)
            if for_states:
                grad_states[at : at + chunk] = grad @ weight
            if for_weight:
                grad_weight += grad.T @ s
        ctx.save_for_backward(grad_states, grad_weight.to(weight.dtype) if for_weight else None)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad, _):
        return *(None if g is None else g * grad for g in ctx.saved_tensors), None, None


class _HeadLoss(torch.autograd.Function):
    """The same behind any output layer, which is called a chunk at a time: one with an adapter, a bias, rows of new tokens, or in 4 bits."""

    @staticmethod
    def forward(ctx, head, labels, chunk, states, *weights):
        losses = torch.empty(len(labels), dtype=torch.float32, device=states.device)
        learns = any(ctx.needs_input_grad)
        grads = [torch.empty_like(states), *(torch.zeros_like(w, dtype=torch.float32) for w in weights)] if learns else []
        for at in range(0, len(labels), chunk):
            s, y = states[at : at + chunk].detach(), labels[at : at + chunk]
            with torch.set_grad_enabled(learns):
                each = F.cross_entropy(head(s.requires_grad_(learns)).float(), y, reduction="none")
                whole = each.sum()
            losses[at : at + chunk] = each.detach()
            if learns:
                for_states, *for_weights = torch.autograd.grad(whole, (s, *weights))
                grads[0][at : at + chunk] = for_states
                for total, g in zip(grads[1:], for_weights):
                    total += g
        ctx.save_for_backward(*(g.to(t.dtype) for g, t in zip(grads, (states, *weights))))
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx, grad, _):
        return None, None, None, *(g * grad for g in ctx.saved_tensors)


@gathering
def loss_sum(model, ids, position, apart, labels, chunk=0):
    """Return (sum of the targets' losses, each target's loss); logits are made for targets only.

    Args:
        ids, position, labels: (tokens,), the documents side by side; a label below 0 is no target.
        apart: where they end, of attention.batch_of.
        chunk: targets whose logits exist at the same time; 0 is 256 on a CPU, and on a GPU as many as have 256 MiB of logits in fp32.

    Returns:
        fp32: a scalar, and (targets,) without a gradient.

    Paper: Orca 2, "Training", on loss: only the teacher's tokens are learned.
    """
    at = labels >= 0
    states, targets, head = hidden(model, ids, position, apart)[at], labels[at].long(), model.get_output_embeddings()
    chunk = chunk or (256 if states.device.type == "cpu" else max(1, 2**26 // model.config.vocab_size))
    weights = [p for p in head.parameters() if p.requires_grad and torch.is_grad_enabled()]
    if type(head) is torch.nn.Linear and head.bias is None:
        return _TargetLoss.apply(states, weights[0] if weights else head.weight.detach(), targets, chunk)
    return _HeadLoss.apply(head, targets, chunk, states, *weights)

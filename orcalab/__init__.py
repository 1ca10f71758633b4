"""orcalab: the missing workbook of Orca 2. The map, one room a file:

config      words, flat dataclasses that check themselves
strategies  system messages: Orca 1's sixteen, the cautious one, one per strategy; erase
chatml      messages -> (ids, mask), injection-safe
packing     lengths -> plan -> packs
data        read, check, dress; rows -> examples on disk
corpus      which rows a stage reads
procedural  the program that teaches on the laptop: questions of reasoning_gym, answers worked out
families    kinds of tasks, the strategy that each asks for, an instruction for each
teacher     answers from a model behind an endpoint, kept in the ledger, judged, made rows
model       base models, attention that keeps packed examples apart, loss on targets
recipes     laptop and smoke: functions returning stages
train       preflight, loop, checkpoints, metrics.jsonl
generate    answers: one, a stream, a conversation, many side by side
safety      moderation of what goes in and comes out
terminal    a conversation in a terminal
serve       exports, and what answers a request to them
evaluate    held-out questions, scores with intervals, paired comparison
show        figures, token views, the report
panels      views to type into, for a notebook
progress    bars, plain lines, time left
__main__    the command line: orcalab run | train | prepare | evaluate | teach | choose | chat | export
"""
__version__ = "0.1.0"

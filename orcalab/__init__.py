"""orcalab: the missing workbook of Orca 2. Its rooms, one a file, by what they are for; README and CONTRIBUTING say more of each.

- words: config, recipes, progress
- text: strategies, families, tokens, chatml
- rows: rows, sources, sampling, mixture, hygiene, dress, prepared, card, data, corpus, procedural, workers, fetch
- teachers: endpoint, ledger, teacher
- training: model, packing, attention, loss, optim, adapter, ranks, checkpoint, forecast, cluster, preflight, watch, train, long
- answers: generate, safety, terminal, serve
- scores: evaluate, tasks, parser, scores, judge, harness, exam
- to see: show, panels, report, execute, sweep; __main__ is the command line
"""
__version__ = "0.1.0"

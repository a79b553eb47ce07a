"""The diary: card, journal, MLflow store, registry. Nothing here is read to compute an output.

A training is recorded so:

    journal = Journal.create(Path.cwd(), name="lenet5 on digits", experiment="twinrun")   # or Journal.resume(...)
    with publishing(journal) as publication:
        journal.code(collect_code(Path.cwd()))
        journal.params(params)                                        # nested, as in params.yaml
        journal.dataset(name="digits", digest=pack_hash, source="data/out/ingest", images=1797)
        journal.metrics(epoch, {"train_loss": ..., "val_accuracy": ...})       # after each epoch
        journal.tags({"twinrun.weights_hash": ..., "twinrun.fingerprint": ...})
        journal.artifact(Path("data/out/train/card.json"))
        journal.artifact(Path("data/out/train/bundle"))
        journal.artifact(Path("data/out/train/history.csv"))
    journal.copy_to(Path("data/out/train/journal.jsonl"))
    if line := publication.notice():
        print(line)
"""

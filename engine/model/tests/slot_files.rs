//! Slots saved to files and restored: the same tokens afterwards, and files that don't fit are refused by name.

mod common;

use std::fs;
use std::path::Path;

use bitnet_model::protocol::{KvType, SlotAction, SlotFault, Submit};
use bitnet_model::synth::{Shape, write};
use common::{Run, config, model, prompt, submit};

fn refused(answer: Result<impl std::fmt::Debug, SlotFault>) -> String {
    match answer {
        Err(SlotFault::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// A file of a slot with 40 prompt tokens and 11 of the 12 produced.
fn saved(run: &mut Run, path: &Path) -> Vec<u32> {
    let mut tokens = prompt(1, 40);
    tokens.extend(run.generate(submit(1, &tokens)).tokens);
    let report = run.act(0, SlotAction::Save(path.to_owned())).unwrap();
    assert_eq!(report.n_tokens, 51);
    assert_eq!(report.n_bytes, fs::metadata(path).unwrap().len());
    assert!(report.ms > 0.0);
    tokens
}

#[test]
fn a_restored_slot_goes_on_with_the_same_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("slot");
    for (kv_type, preset) in [
        (KvType::F16, "tiny"),
        (KvType::F32, "tiny-llama"),
        (KvType::Q8_0, "tiny-silu"),
    ] {
        let mut config = config(&model(directory.path(), preset));
        config.kv_type = kv_type;
        let tokens = saved(&mut Run::new(&config), &path);
        let expected = Run::new(&config).generate(submit(2, &tokens));

        config.slots = 3;
        config.slot_context = 64;
        let mut run = Run::new(&config);
        let restored = run.act(1, SlotAction::Restore(path.clone())).unwrap();
        assert_eq!(restored.n_tokens, 51);
        assert_eq!(restored.n_bytes, fs::metadata(&path).unwrap().len());
        let goes_on = run.generate(submit(2, &tokens));
        assert_eq!((goes_on.slot, goes_on.cached), (Some(1), 51));
        assert_eq!(
            (goes_on.tokens, goes_on.probs),
            (expected.tokens, expected.probs)
        );

        let n_erased = run.act(1, SlotAction::Erase).unwrap().n_tokens;
        assert_eq!(n_erased, 63);
        assert_eq!(run.generate(submit(2, &tokens)).cached, 0);
    }
}

#[test]
fn an_empty_slot_can_be_saved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("slot");
    let mut run = Run::new(&config(&model(directory.path(), "tiny")));
    assert_eq!(
        run.act(0, SlotAction::Save(path.clone())).unwrap().n_tokens,
        0
    );
    assert_eq!(run.act(0, SlotAction::Restore(path)).unwrap().n_tokens, 0);
}

#[test]
fn actions_wait_for_their_slot_and_nobody_takes_it_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("slot");
    let mut run = Run::new(&config(&model(directory.path(), "tiny")));
    run.submit(submit(1, &prompt(1, 40)));
    run.scheduler.step();
    run.submit(submit(2, &prompt(2, 10)));
    let report = run.act(0, SlotAction::Save(path)).unwrap();
    assert_eq!(
        report.n_tokens, 51,
        "behind the first job, before the second"
    );
    assert_eq!(run.outcome(2).tokens.len(), 12);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("slot");
    let mut config = config(&model(directory.path(), "tiny"));
    let mut run = Run::new(&config);
    let tokens = saved(&mut run, &path);
    let good = fs::read(&path).unwrap();
    let mut with = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        refused(run.act(0, SlotAction::Restore(path.clone())))
    };
    assert_eq!(
        with(&good[..good.len() - 1]),
        format!(
            "`slot` is damaged: it has {} bytes, expected {}",
            good.len() - 1,
            good.len()
        )
    );
    assert_eq!(
        with(&good[..20]),
        "`slot` is damaged: it has 20 bytes, expected 64"
    );
    assert_eq!(with(&[7; 100]), "`slot` is not a file of a saved slot");
    let changed = |place: usize| {
        let mut bytes = good.clone();
        bytes[place] ^= 1;
        bytes
    };
    assert_eq!(with(&changed(8)), "`slot` has the version 0, expected 1");
    assert_eq!(with(&changed(20)), "`slot` was saved with another model");
    assert!(with(&changed(49)).starts_with("`slot` is damaged: its sizes"));
    assert!(with(&changed(60)).starts_with("`slot` is damaged: it has"));
    let cached = run.generate(submit(2, &tokens)).cached;
    assert_eq!(cached, 51, "the slot is as it was");

    // Found at the end, when the slot has been overwritten.
    fs::write(&path, changed(good.len() / 2)).unwrap();
    assert_eq!(
        refused(run.act(0, SlotAction::Restore(path.clone()))),
        "`slot` is damaged: its content does not have its checksum"
    );
    assert_eq!(run.generate(submit(2, &tokens)).cached, 0);

    fs::write(&path, &good).unwrap();
    let elsewhere = |run: &mut Run| refused(run.act(0, SlotAction::Restore(path.clone())));
    config.kv_type = KvType::F32;
    let other_type = elsewhere(&mut Run::new(&config));
    assert!(other_type.starts_with("`slot` was saved with another type of KV cache"));
    config.kv_type = KvType::F16;
    config.slot_context = 50;
    assert_eq!(
        elsewhere(&mut Run::new(&config)),
        "`slot` holds 51 tokens, a slot holds 50"
    );
    let other = directory.path().join("other.gguf");
    write(&Shape::preset("tiny").unwrap(), 8, &other, &mut |_, _| {}).unwrap();
    let mut other = Run::new(&common::config(&other));
    assert_eq!(elsewhere(&mut other), "`slot` was saved with another model");
}

#[test]
fn files_that_cannot_be_read_or_written_are_named_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new(&config(&model(directory.path(), "tiny")));
    let path = directory.path().join("slot");
    let missing = refused(run.act(0, SlotAction::Restore(path.clone())));
    assert!(
        missing.starts_with("cannot read `slot`: No such file"),
        "{missing}"
    );
    let nowhere = directory.path().join("no/slot");
    let nowhere = refused(run.act(0, SlotAction::Save(nowhere)));
    assert!(nowhere.starts_with("cannot make `slot.part`"), "{nowhere}");
    let unknown = refused(run.act(1, SlotAction::Erase));
    assert_eq!(unknown, "slot 1 is not one of the 1, which count from 0");

    let tokens = saved(&mut run, &path);
    let good = fs::read(&path).unwrap();
    // Everything written to it meets a full disk.
    let part = directory.path().join("slot.part");
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let _ = run.generate(Submit {
        cache_prompt: false,
        ..submit(3, &prompt(3, 20))
    });
    match run.act(0, SlotAction::Save(path.clone())) {
        Err(SlotFault::Failed(reason)) => {
            assert!(
                reason.starts_with("cannot write `slot`: No space left"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&path).unwrap(), good, "the old file is as it was");
    assert!(!part.exists(), "nothing is left behind");
    run.act(0, SlotAction::Restore(path)).unwrap();
    assert_eq!(run.generate(submit(2, &tokens)).cached, 51);
}

//! Canaries, replaced engines, sleep: what happens between engines on purpose.

use super::*;

/// A bench whose engines have to answer the canary.
fn tested(faults: Vec<Vec<Fault>>, tune: impl FnOnce(&mut BrokerConfig)) -> Bench {
    bench(faults, vec![], |config| {
        config.canary = Some(Canary {
            prompt: vec![9, 8],
            n: 3,
        });
        tune(config);
    })
}

impl Bench {
    fn spoken(&self) {
        wait_for(|| self.broker.condition().has_spoken);
        // To its last token.
        thread::sleep(Duration::from_millis(50));
    }

    fn replace(
        &self,
        tenure: u64,
        same_model: bool,
        gap: Option<u64>,
    ) -> Receiver<Result<(), Failure>> {
        let (outcome, receiver) = mpsc::channel();
        let mut config = self.config.clone();
        config.engine.kernel = "i2_s/scalar".into();
        self.broker.replace(Replacement {
            tenure,
            config,
            same_model,
            gap,
            outcome,
        });
        receiver
    }

    fn ask(&self, tenure: u64, prompt: &[u32], seed: u32, n: u32) -> JobHandle {
        let mut job = job(prompt, seed, Some(n));
        job.tenure = tenure;
        self.broker.submit(job).unwrap()
    }
}

fn of_other_model(tokens: &[u32]) -> bool {
    tokens.iter().all(|token| *token >= 2000)
}

#[test]
fn the_first_engine_speaks_without_being_asked() {
    let mut bench = tested(vec![], |_| {});
    bench.ready();
    bench.spoken();
    assert_eq!(bench.broker.counters().processing, 0);
    assert!(bench.broker.slots().iter().all(|slot| slot.job.is_none()));
    let told = listen(bench.submit(&[5], 1, Some(9)));
    assert_eq!(told.tokens, undisturbed(&[5], 1, 9));
}

#[test]
fn no_job_waits_for_the_first_canary() {
    let mut bench = tested(vec![], |config| config.engine.slots = 1);
    bench.ready();
    for seed in 0..20 {
        let told = listen(bench.submit(&[5], seed, Some(9)));
        assert_eq!(told.tokens, undisturbed(&[5], seed, 9));
        thread::sleep(Duration::from_millis(u64::from(seed) * 3));
    }
    bench.spoken();
}

#[test]
fn later_engines_have_to_answer_alike() {
    let faults = vec![vec![Fault::DieAfter(6, 9)], vec![Fault::OtherModel], vec![]];
    let mut bench = tested(faults, |_| {});
    bench.ready();
    bench.spoken();
    let told = listen(bench.submit(&[5, 6], 3, Some(20)));
    assert_eq!(told.tokens, undisturbed(&[5, 6], 3, 20));
    assert_eq!(bench.started.load(Ordering::SeqCst), 3);
}

#[test]
fn engines_that_answer_otherwise_are_given_up() {
    let mut faults = vec![vec![Fault::OtherModel]; 8];
    faults[0] = vec![Fault::DieAfter(6, 9)];
    let mut bench = tested(faults, |_| {});
    bench.ready();
    bench.spoken();
    let told = listen(bench.submit(&[5, 6], 3, Some(20)));
    assert!(!told.tokens.iter().any(|token| *token >= 2000));
    assert!(
        matches!(&told.finish, Finish::Error(reason) if reason.contains("test answer")),
        "{:?}",
        told.finish
    );
    let state = bench.broker.state();
    assert!(matches!(state, BackendState::Failed(reason) if reason.contains("test answer")));
}

#[test]
fn a_kernel_without_its_instructions_gives_way_to_the_next() {
    let lacking = Fault::LacksInstructions("i2_s/fast");
    let mut bench = bench(vec![vec![lacking], vec![lacking]], vec![], |config| {
        config.engine.kernel = "i2_s/fast".into();
        config.other_kernels = ["i2_s/slow".to_owned()].into();
    });
    bench.ready();
    let crash = bench.broker.condition().last_crash.unwrap();
    assert!(crash.hint.unwrap().contains("trying `i2_s/slow`"));
    assert_eq!(crash.log, ["INFO last words"]);
    let told = listen(bench.submit(&[5], 1, Some(9)));
    assert_eq!(told.tokens, undisturbed(&[5], 1, 9));
}

#[test]
fn an_engine_is_replaced_while_both_work() {
    let mut bench = tested(vec![vec![], vec![Fault::LoadsSlowly(50)]], |_| {});
    bench.ready();
    bench.spoken();
    let running = bench.submit(&[5, 6], 3, Some(30));
    let outcome = bench.replace(2, true, None);
    // Still served by the first.
    let waiting: Vec<_> = (0..4).map(|n| bench.submit(&[n], n, Some(9))).collect();
    assert_eq!(outcome.recv().unwrap(), Ok(()));
    assert_eq!(bench.broker.state(), BackendState::Ready);
    // Made for the first, and it is still there for them.
    let late = bench.submit(&[8], 5, Some(9));
    let new = bench.ask(2, &[7, 8], 4, 9);
    assert_eq!(listen(new).tokens, undisturbed(&[7, 8], 4, 9));
    assert_eq!(listen(late).tokens, undisturbed(&[8], 5, 9));
    assert_eq!(listen(running).tokens, undisturbed(&[5, 6], 3, 30));
    for (n, handle) in (0..).zip(waiting) {
        assert_eq!(listen(handle).tokens, undisturbed(&[n], n, 9));
    }
    assert_eq!(bench.started.load(Ordering::SeqCst), 2);
    assert_eq!(bench.broker.counters().engine_restarts, 0);
    // Nobody knows the first tenure any more.
    drop(bench.broker.tenure(0));
    wait_for(|| {
        let told = listen(bench.submit(&[8], 5, Some(9)));
        matches!(told.finish, Finish::Unserved(why) if why.contains("replaced"))
    });
    let told = listen(bench.ask(2, &[7, 8], 4, 9));
    assert_eq!(told.tokens, undisturbed(&[7, 8], 4, 9));
}

#[test]
fn tokens_of_one_model_never_reach_another() {
    let mut bench = tested(vec![vec![], vec![Fault::OtherModel]], |_| {});
    bench.ready();
    bench.spoken();
    let old: Vec<_> = (0..5).map(|n| bench.submit(&[n], n, Some(25))).collect();
    assert_eq!(bench.replace(2, false, None).recv().unwrap(), Ok(()));
    let new: Vec<_> = (0..3).map(|n| bench.ask(2, &[n], n, 5)).collect();
    for (n, handle) in (0..).zip(old) {
        assert_eq!(listen(handle).tokens, undisturbed(&[n], n, 25));
    }
    for handle in new {
        let told = listen(handle);
        assert!(told.tokens.len() == 5 && of_other_model(&told.tokens));
    }
}

#[test]
fn the_old_engine_stays_when_the_new_one_fails() {
    let faults = [
        (vec![Fault::Refuse], false, "cannot load"),
        (vec![Fault::DieAfter(0, 11)], false, "SIGSEGV"),
        (vec![Fault::DieAfter(1, 11)], false, "SIGSEGV"),
        (vec![Fault::OtherModel], true, "test answer"),
    ];
    for (fault, same_model, reason) in faults {
        let mut bench = tested(vec![vec![], fault], |_| {});
        bench.ready();
        bench.spoken();
        let running = bench.submit(&[5, 6], 3, Some(30));
        let outcome = bench.replace(2, same_model, None).recv().unwrap();
        let why = outcome.expect_err("it fails");
        assert!(why.reason.contains(reason), "{why:?}");
        assert_eq!(listen(running).tokens, undisturbed(&[5, 6], 3, 30));
        let told = listen(bench.submit(&[7], 4, Some(9)));
        assert_eq!(told.tokens, undisturbed(&[7], 4, 9));
        assert_eq!(bench.broker.state(), BackendState::Ready);
        assert_eq!(bench.started.load(Ordering::SeqCst), 2);
        // And the next one may try.
        assert_eq!(bench.replace(4, true, None).recv().unwrap(), Ok(()));
    }
}

#[test]
fn an_old_engine_that_dies_while_it_ends_is_replaced_by_its_like() {
    let faults = vec![vec![Fault::DieAfter(20, 9)], vec![Fault::OtherModel]];
    let mut bench = tested(faults, |_| {});
    bench.ready();
    bench.spoken();
    let seed = (0..).find(|seed| undisturbed(&[5], *seed, 40).len() == 40);
    let old = bench.submit(&[5], seed.unwrap(), Some(40));
    assert_eq!(bench.replace(2, false, None).recv().unwrap(), Ok(()));
    drop(bench.broker.tenure(0));
    assert_eq!(listen(old).tokens, undisturbed(&[5], seed.unwrap(), 40));
    let told = listen(bench.ask(2, &[7], 4, 5));
    assert!(of_other_model(&told.tokens));
}

#[test]
fn requests_wait_through_a_gap() {
    let slow = vec![Fault::OtherModel, Fault::LoadsSlowly(80)];
    let mut bench = tested(vec![vec![], slow], |_| {});
    bench.ready();
    bench.spoken();
    let old = bench.submit(&[5, 6], 3, Some(30));
    let outcome = bench.replace(2, false, Some(3));
    let new: Vec<_> = (0..4).map(|n| bench.ask(2, &[n], n, 5)).collect();
    assert_eq!(bench.broker.state(), BackendState::Ready);
    assert_eq!(listen(old).tokens, undisturbed(&[5, 6], 3, 30));
    assert_eq!(bench.started.load(Ordering::SeqCst), 1, "one at a time");
    drop(bench.broker.tenure(0));
    assert_eq!(outcome.recv().unwrap(), Ok(()));
    for handle in new {
        assert!(of_other_model(&listen(handle).tokens));
    }
    assert_eq!(bench.started.load(Ordering::SeqCst), 2);
}

#[test]
fn after_a_gap_in_vain_the_old_model_comes_back() {
    for same_model in [false, true] {
        let mut bench = tested(vec![vec![], vec![Fault::Refuse]], |_| {});
        bench.ready();
        bench.spoken();
        let outcome = bench.replace(2, same_model, Some(3));
        let waiting = bench.ask(2, &[7], 4, 9);
        drop(bench.broker.tenure(0));
        let why = outcome.recv().unwrap().expect_err("it fails");
        assert!(why.reason.contains("cannot load"), "{why:?}");
        let told = listen(waiting);
        let tenure = match same_model {
            true => {
                assert_eq!(told.tokens, undisturbed(&[7], 4, 9));
                2
            }
            false => {
                assert!(
                    matches!(told.finish, Finish::Unserved(why) if why.contains("cannot load"))
                );
                3
            }
        };
        let told = listen(bench.ask(tenure, &[7], 4, 9));
        assert_eq!(told.tokens, undisturbed(&[7], 4, 9));
        assert_eq!(bench.broker.state(), BackendState::Ready);
    }
}

#[test]
fn the_end_comes_in_the_middle_of_a_replacement() {
    for gap in [None, Some(3)] {
        let mut bench = tested(vec![vec![], vec![Fault::LoadsSlowly(300)]], |_| {});
        bench.ready();
        bench.spoken();
        let running = bench.submit(&[5, 6], 3, Some(12));
        let outcome = bench.replace(2, true, gap);
        bench.broker.drain(LONG);
        assert!(outcome.recv().unwrap().is_err());
        assert_eq!(listen(running).tokens, undisturbed(&[5, 6], 3, 12));
        wait_for(|| bench.notices.try_recv() == Ok(Notice::Stopped));
    }
}

#[test]
fn idle_engines_sleep_and_wake() {
    let mut bench = tested(vec![], |config| {
        config.sleep_after = Some(Duration::from_millis(60));
    });
    bench.ready();
    bench.spoken();
    for round in 1..4 {
        wait_for(|| bench.broker.condition().is_asleep && bench.broker.engine_pid().is_none());
        assert_eq!(bench.broker.state(), BackendState::Ready);
        thread::sleep(Duration::from_millis(100));
        assert_eq!(bench.started.load(Ordering::SeqCst), round);
        let told = listen(bench.submit(&[5], 1, Some(9)));
        assert_eq!(told.tokens, undisturbed(&[5], 1, 9));
        assert!(!bench.broker.condition().is_asleep);
    }
    assert_eq!(bench.broker.counters().engine_restarts, 0);
    wait_for(|| bench.broker.condition().is_asleep);
    let erased = bench.broker.slot_action(0, SlotAction::Erase).unwrap();
    assert!(
        erased.blocking_recv().unwrap().is_ok(),
        "a slot action wakes, too"
    );
    wait_for(|| bench.broker.condition().is_asleep);
    bench.broker.drain(LONG);
    wait_for(|| bench.notices.try_recv() == Ok(Notice::Stopped));
}

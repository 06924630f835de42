//! What each policy of FedAvg does, told as small stories.

use expect_test::expect;

use super::door::check;

// Rounds and models.

#[test]
fn a_round_waits_for_every_site_and_folds_in_site_order() {
    check(
        "sites a b c; rounds 2; start
         3s b ok steps=10 acc=0.5; 4s c ok steps=30 acc=0.7; 9s a ok steps=20 acc=0.6
         12s a ok; 12s b ok; 13s c ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init
            9.0s fold r1#0 on init: a*20, b*10, c*30
            9.0s save latest g1
            9.0s commit r1 init>g1: a*20, b*10, c*30 | acc 0.6333333333333333 of 3
            9.0s train r2: a b c get g1
            13.0s fold r2#0 on g1: a*1, b*1, c*1
            13.0s save latest g2
            13.0s commit r2 g1>g2: a*1, b*1, c*1
            13.0s completed 2 rounds (all rounds are done)
        "#]],
    );
}

#[test]
fn without_an_initial_model_the_first_fold_makes_one() {
    check(
        "sites a b; rounds 2; best acc max; start without model
         a ok acc=0.1; b ok acc=0.3; a ok acc=0.5; b ok acc=0.7",
        expect![[r#"
            0.0s train r1: a b get none
            0.0s fold r1#0 on none: a*1, b*1
            0.0s save latest g1
            0.0s commit r1 none>g1: a*1, b*1 | acc 0.2 of 2
            0.0s train r2: a b get g1
            0.0s fold r2#0 on g1: a*1, b*1
            0.0s save latest g2
            0.0s save best g1
            0.0s commit r2 g1>g2: a*1, b*1 | acc 0.6 of 2 | best g1
            0.0s completed 2 rounds (all rounds are done)
        "#]],
    );
}

#[test]
fn rounds_count_from_the_start_round() {
    check(
        "sites a; rounds 2; start_round 5; start; a ok; a ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r6: a get init
            0.0s fold r6#0 on init: a*1
            0.0s save latest g6
            0.0s commit r6 init>g6: a*1
            0.0s train r7: a get g6
            0.0s fold r7#0 on g6: a*1
            0.0s save latest g7
            0.0s commit r7 g6>g7: a*1
            0.0s completed 2 rounds (all rounds are done)
        "#]],
    );
}

#[test]
fn what_is_no_longer_used_is_released_after_the_commit() {
    check(
        "sites a; rounds 3; best acc max; show releases; start
         a ok acc=0.5; a ok acc=0.4; a ok acc=0.6",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s save best init
            0.0s commit r1 init>g1: a*1 | acc 0.5 of 1 | best init
            0.0s release a.r1#0
            0.0s train r2: a get g1
            0.0s fold r2#0 on g1: a*1
            0.0s save latest g2
            0.0s commit r2 g1>g2: a*1 | acc 0.4 of 1
            0.0s release a.r2#0
            0.0s release g1
            0.0s train r3: a get g2
            0.0s fold r3#0 on g2: a*1
            0.0s save latest g3
            0.0s save best g2
            0.0s commit r3 g2>g3: a*1 | acc 0.6 of 1 | best g2
            0.0s release a.r3#0
            0.0s release init
            0.0s completed 3 rounds (all rounds are done)
        "#]],
    );
}

// Starting.

#[test]
fn the_job_waits_for_the_quorum_to_start() {
    check(
        "sites a b c; min 1; quorum_start 2; start nobody; status
         1s a joins; 2s c joins; status; 3s a ok; 3s c ok",
        expect![[r#"
            0.0s save initial init
            0.0s status: waiting to start: 0 of 2 sites are there; waiting for a: not connected; waiting for b: not connected; waiting for c: not connected
            2.0s train r1: a c get init
            2.0s status: round 1 of 1: 0 in, 1 needed; waiting for a: not acknowledged since 2.0s; waiting for c: not acknowledged since 2.0s
            3.0s fold r1#0 on init: a*1, c*1
            3.0s save latest g1
            3.0s commit r1 init>g1: a*1, b absent, c*1
            3.0s completed 1 round with 2 of 3 sites (all rounds are done); b missed round 1: was not connected [disconnected, during start]
        "#]],
    );
}

#[test]
fn the_quorum_to_start_is_never_below_the_one_of_a_round() {
    check(
        "sites a b c; quorum_start 1; quorum_round 2; start a; 1s b joins; 2s a ok; 2s b ok",
        expect![[r#"
            0.0s save initial init
            1.0s train r1: a b get init
            2.0s fold r1#0 on init: a*1, b*1
            2.0s save latest g1
            2.0s commit r1 init>g1: a*1, b*1, c absent
            2.0s completed 1 round with 2 of 3 sites (all rounds are done); c missed round 1: was not connected [disconnected, during start]
        "#]],
    );
}

#[test]
fn the_job_waits_for_a_required_site() {
    check(
        "sites a b; min 1; require b; start a; 5s status; 6s b joins; 7s a ok; 8s b ok",
        expect![[r#"
            0.0s save initial init
            5.0s status: waiting to start: 1 of 1 sites are there; waiting for b: not connected
            6.0s train r1: a b get init
            8.0s fold r1#0 on init: a*1, b*1
            8.0s save latest g1
            8.0s commit r1 init>g1: a*1, b*1
            8.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn a_start_that_has_become_impossible_fails_at_once() {
    check(
        "sites a b c; min 2; start a; 1s b refuses; 2s c refuses",
        expect![[r#"
            0.0s save initial init
            2.0s failed: the job needs 2 sites to start and can get at most 1: b: has no script `client.py` [script-missing, during start]; c: has no script `client.py` [script-missing, during start] (hint: check train_script)
        "#]],
    );
    check(
        "sites a b; min 1; require b; start a; 1s b refuses",
        expect![[r#"
            0.0s save initial init
            1.0s failed: the job cannot start without b, which is required: b: has no script `client.py` [script-missing, during start] (hint: check train_script)
        "#]],
    );
}

#[test]
fn a_site_whose_lease_ended_before_the_start_may_still_come() {
    check(
        "sites a b; start a; 1s a leaves; 2s b joins; 3s a joins; 4s a ok; 4s b ok",
        expect![[r#"
            0.0s save initial init
            3.0s train r1: a b get init
            4.0s fold r1#0 on init: a*1, b*1
            4.0s save latest g1
            4.0s commit r1 init>g1: a*1, b*1
            4.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn a_site_that_comes_late_joins_the_open_round() {
    check(
        "sites a b c; min 2; start a b; 5s c joins; 6s a ok; 6s b ok; 7s c ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            5.0s train r1: c get init
            7.0s fold r1#0 on init: a*1, b*1, c*1
            7.0s save latest g1
            7.0s commit r1 init>g1: a*1, b*1, c*1
            7.0s completed 1 round (all rounds are done)
        "#]],
    );
    check(
        "sites a b c; min 2; rounds 2; returning next; start a b; 5s c joins; 6s a ok; 6s b ok
         7s a ok; 7s b ok; 7s c ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            6.0s fold r1#0 on init: a*1, b*1
            6.0s save latest g1
            6.0s commit r1 init>g1: a*1, b*1, c absent
            6.0s train r2: a b c get g1
            7.0s fold r2#0 on g1: a*1, b*1, c*1
            7.0s save latest g2
            7.0s commit r2 g1>g2: a*1, b*1, c*1
            7.0s completed 2 rounds with 2 of 3 sites (all rounds are done); c missed round 1: was not connected [disconnected, during start]
        "#]],
    );
}

// Quorum, deadline, grace, late results.

#[test]
fn a_late_site_is_left_out() {
    check(
        "sites a b c; min 2; round 60s; start; 10s a ok; 10s b ok; 61s c ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init until 60.0s
            60.0s cancel c.r1#0: the round closed without this site
            60.0s warn: round 1 closed without c (late)
            60.0s fold r1#0 on init: a*1, b*1
            60.0s save latest g1
            60.0s commit r1 init>g1: a*1, b*1, c late
            60.0s completed 1 round with 2 of 3 sites (all rounds are done); c missed round 1: had not answered when the round closed: not acknowledged since 0.0s [round-deadline, during train]
        "#]],
    );
}

#[test]
fn a_result_at_the_very_deadline_counts() {
    check(
        "sites a b; min 1; round 60s; start; 10s a ok; 60s b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init until 60.0s
            60.0s fold r1#0 on init: a*1, b*1
            60.0s save latest g1
            60.0s commit r1 init>g1: a*1, b*1
            60.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn a_round_without_quorum_at_its_deadline_fails_and_names_who_was_waited_for() {
    check(
        "sites a b c; min 2; round 60s; start; 10s a ok; 20s b trains; 61s tick",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init until 60.0s
            60.0s commit r1 init>none: a*1, b waiting, c waiting
            60.0s cancel b.r1#0: the job has ended
            60.0s cancel c.r1#0: the job has ended
            60.0s failed: round 1 ended at its deadline after 60.0 s with 1 of the 2 sites it needs: b: had not answered when the round closed: training since 20.0s [round-deadline, during train]; c: had not answered when the round closed: not acknowledged since 0.0s [round-deadline, during train] (hint: give rounds more time, or see what slows this site)
        "#]],
    );
}

#[test]
fn grace_bounds_the_wait_once_the_quorum_is_there() {
    check(
        "sites a b c d; min 2; grace 5s; start; 10s a ok; 12s b ok; 16s c ok; 18s tick",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c d get init
            17.0s cancel d.r1#0: the round closed without this site
            17.0s warn: round 1 closed without d (late)
            17.0s fold r1#0 on init: a*1, b*1, c*1
            17.0s save latest g1
            17.0s commit r1 init>g1: a*1, b*1, c*1, d late
            17.0s completed 1 round with 3 of 4 sites (all rounds are done); d missed round 1: had not answered when the round closed: not acknowledged since 0.0s [round-deadline, during train]
        "#]],
    );
}

#[test]
fn a_late_result_may_count_in_the_next_round() {
    check(
        "sites a b; min 1; rounds 3; round 10s; late next; start
         1s a ok acc=0.5; 15s b ok acc=0.9; 16s a ok acc=0.6; 17s a ok; 17s b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init until 10.0s
            10.0s warn: round 1 closed without b (late)
            10.0s fold r1#0 on init: a*1
            10.0s save latest g1
            10.0s commit r1 init>g1: a*1, b late | acc 0.5 of 1
            10.0s train r2: a get g1 until 20.0s
            16.0s fold r2#0 on g1: a*1, b*1 from r1
            16.0s save latest g2
            16.0s commit r2 g1>g2: a*1, b*1 | acc 0.6 of 1
            16.0s train r3: a b get g2 until 26.0s
            17.0s fold r3#0 on g2: a*1, b*1
            17.0s save latest g3
            17.0s commit r3 g2>g3: a*1, b*1
            17.0s completed 3 rounds with 1 of 2 sites (all rounds are done); b missed round 1: had not answered when the round closed: not acknowledged since 0.0s [round-deadline, during train]
        "#]],
    );
}

#[test]
fn a_late_result_that_comes_while_the_round_is_summed_counts_in_the_next() {
    check(
        "sites a b; min 1; rounds 2; round 10s; late next; fold by hand; start
         1s a ok; 11s b ok steps=7; 12s folded; 13s a ok; 14s folded",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init until 10.0s
            10.0s warn: round 1 closed without b (late)
            10.0s fold r1#0 on init: a*1
            12.0s save latest g1
            12.0s commit r1 init>g1: a*1, b late
            12.0s train r2: a get g1 until 22.0s
            13.0s fold r2#0 on g1: a*1, b*7 from r1
            14.0s save latest g2
            14.0s commit r2 g1>g2: a*1, b*7
            14.0s completed 2 rounds with 1 of 2 sites (all rounds are done); b missed round 1: answered after the round had closed [round-deadline, during train]
        "#]],
    );
}

#[test]
fn a_late_task_ends_with_the_job() {
    check(
        "sites a b; min 1; round 10s; late next; start; 1s a ok; 11s tick; 12s b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init until 10.0s
            10.0s warn: round 1 closed without b (late)
            10.0s fold r1#0 on init: a*1
            10.0s save latest g1
            10.0s commit r1 init>g1: a*1, b late
            10.0s cancel b.r1#0: the job has ended
            10.0s completed 1 round with 1 of 2 sites (all rounds are done); b missed round 1: had not answered when the round closed: not acknowledged since 0.0s [round-deadline, during train]
        "#]],
    );
}

#[test]
fn required_sites_count_beside_the_quorum() {
    check(
        "sites a b c; min 2; require c; round 60s; start; 1s a ok; 2s b ok; 61s tick",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init until 60.0s
            60.0s commit r1 init>none: a*1, b*1, c waiting
            60.0s cancel c.r1#0: the job has ended
            60.0s failed: round 1 ended at its deadline after 60.0 s without c, which is required: c: had not answered when the round closed: not acknowledged since 0.0s [round-deadline, during train] (hint: give rounds more time, or see what slows this site)
        "#]],
    );
    check(
        "sites a b c; min 2; require c; start; 1s a ok; 2s b ok; 3s c fails",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init
            3.0s warn: c failed in round 1: raised ValueError: x [raised, during train]
            3.0s commit r1 init>none: a*1, b*1, c failed (raised)
            3.0s failed: round 1 cannot do without c, which is required: c: raised ValueError: x [raised, during train] (hint: see the traceback)
        "#]],
    );
}

// Failures.

#[test]
fn the_job_fails_as_soon_as_the_quorum_is_out_of_reach() {
    check(
        "sites a b c; min 2; start; 1s a fails; 2s c trains; 3s b leaves",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init
            1.0s warn: a failed in round 1: raised ValueError: x [raised, during train]
            3.0s warn: b failed in round 1: was not heard of for its lease [disconnected, during train]
            3.0s commit r1 init>none: a failed (raised), b failed (disconnected), c waiting
            3.0s cancel c.r1#0: the job has ended
            3.0s failed: round 1 needs 2 sites and can get at most 1: a: raised ValueError: x [raised, during train]; b: was not heard of for its lease [disconnected, during train] (hint: see the traceback)
        "#]],
    );
}

#[test]
fn with_its_quorum_the_job_goes_on_and_says_who_missed_what() {
    check(
        "sites a b c; min 2; rounds 3; start; 1s a ok; 1s b ok; 2s c fails
         3s a ok; 3s b ok; 4s c ok; 5s a ok; 5s b ok; 6s c fails",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init
            2.0s warn: c failed in round 1: raised ValueError: x [raised, during train]
            2.0s fold r1#0 on init: a*1, b*1
            2.0s save latest g1
            2.0s commit r1 init>g1: a*1, b*1, c failed (raised)
            2.0s train r2: a b c get g1
            4.0s fold r2#0 on g1: a*1, b*1, c*1
            4.0s save latest g2
            4.0s commit r2 g1>g2: a*1, b*1, c*1
            4.0s train r3: a b c get g2
            6.0s warn: c failed in round 3: raised ValueError: x [raised, during train]
            6.0s fold r3#0 on g2: a*1, b*1
            6.0s save latest g3
            6.0s commit r3 g2>g3: a*1, b*1, c failed (raised)
            6.0s completed 3 rounds with 2 of 3 sites (all rounds are done); c missed 2 rounds from 1 to 3: raised ValueError: x [raised, during train]
        "#]],
    );
}

#[test]
fn a_site_that_fails_in_a_row_is_dismissed() {
    check(
        "sites a b; min 1; rounds 4; max_failures 2; start
         a ok; b fails; a ok; b fails; a ok; a ok; b joins",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            0.0s warn: b failed in round 1: raised ValueError: x [raised, during train]
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1, b failed (raised)
            0.0s train r2: a b get g1
            0.0s warn: b failed in round 2: raised ValueError: x [raised, during train]
            0.0s dismiss b: raised ValueError: x [raised, during train]
            0.0s fold r2#0 on g1: a*1
            0.0s save latest g2
            0.0s commit r2 g1>g2: a*1, b failed (raised)
            0.0s train r3: a get g2
            0.0s fold r3#0 on g2: a*1
            0.0s save latest g3
            0.0s commit r3 g2>g3: a*1, b excluded (raised)
            0.0s train r4: a get g3
            0.0s fold r4#0 on g3: a*1
            0.0s save latest g4
            0.0s commit r4 g3>g4: a*1, b excluded (raised)
            0.0s completed 4 rounds with 1 of 2 sites (all rounds are done); b missed rounds 1-4: raised ValueError: x [raised, during train]
        "#]],
    );
}

#[test]
fn a_contribution_ends_the_row_of_failures() {
    check(
        "sites a b; min 1; rounds 4; max_failures 2; start
         a ok; b fails; a ok; b ok; a ok; b fails; a ok; b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            0.0s warn: b failed in round 1: raised ValueError: x [raised, during train]
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1, b failed (raised)
            0.0s train r2: a b get g1
            0.0s fold r2#0 on g1: a*1, b*1
            0.0s save latest g2
            0.0s commit r2 g1>g2: a*1, b*1
            0.0s train r3: a b get g2
            0.0s warn: b failed in round 3: raised ValueError: x [raised, during train]
            0.0s fold r3#0 on g2: a*1
            0.0s save latest g3
            0.0s commit r3 g2>g3: a*1, b failed (raised)
            0.0s train r4: a b get g3
            0.0s fold r4#0 on g3: a*1, b*1
            0.0s save latest g4
            0.0s commit r4 g3>g4: a*1, b*1
            0.0s completed 4 rounds with 1 of 2 sites (all rounds are done); b missed 2 rounds from 1 to 3: raised ValueError: x [raised, during train]
        "#]],
    );
}

#[test]
fn under_exclude_the_first_failure_is_the_last() {
    check(
        "sites a b; min 1; rounds 2; on_failure exclude; start; a ok; b fails; a ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            0.0s warn: b failed in round 1: raised ValueError: x [raised, during train]
            0.0s dismiss b: raised ValueError: x [raised, during train]
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1, b failed (raised)
            0.0s train r2: a get g1
            0.0s fold r2#0 on g1: a*1
            0.0s save latest g2
            0.0s commit r2 g1>g2: a*1, b excluded (raised)
            0.0s completed 2 rounds with 1 of 2 sites (all rounds are done); b missed rounds 1-2: raised ValueError: x [raised, during train]
        "#]],
    );
}

#[test]
fn a_task_has_its_limit_from_the_trainer_on() {
    check(
        "sites a b; min 1; task 10s; start
         5s a accepts; 20s a trains; 25s b trains; 29s a sends; 30s status; 40s a ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            30.0s status: round 1 of 1: 0 in, 1 needed; waiting for a: sending its result since 29.0s; waiting for b: training since 25.0s
            35.0s cancel b.r1#0: the task's time is over
            35.0s warn: b failed in round 1: had not sent its result 10.0 s after the task was handed to its trainer [task-deadline, during train]
            40.0s fold r1#0 on init: a*1
            40.0s save latest g1
            40.0s commit r1 init>g1: a*1, b failed (task-deadline)
            40.0s completed 1 round with 1 of 2 sites (all rounds are done); b missed round 1: had not sent its result 10.0 s after the task was handed to its trainer [task-deadline, during train]
        "#]],
    );
}

#[test]
fn a_site_that_leaves_and_returns_is_asked_again() {
    check(
        "sites a b; min 1; start; 1s b leaves; 2s b joins; 3s b ok r0#0; 4s a ok; 5s b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            1.0s warn: b failed in round 1: was not heard of for its lease [disconnected, during train]
            2.0s train r1: b#1 get init
            3.0s warn: the result of b for round 1 came too late and was dropped
            5.0s fold r1#0 on init: a*1, b*1
            5.0s save latest g1
            5.0s commit r1 init>g1: a*1, b*1
            5.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn a_site_that_lost_its_work_is_asked_again() {
    check(
        "sites a b; start; 1s a ok; 2s b joins; 3s b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            2.0s train r1: b#1 get init
            3.0s fold r1#0 on init: a*1, b*1
            3.0s save latest g1
            3.0s commit r1 init>g1: a*1, b*1
            3.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn what_cannot_be_an_update_fails_its_site() {
    check(
        "sites a b c d e; min 1; type FULL; start
         a ok empty; b ok DIFF; c ok steps=NaN; d ok steps=-1; e ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c d e get init
            0.0s warn: a failed in round 1: sent metrics without params for a training task [misuse, during send]
            0.0s warn: b failed in round 1: sent DIFF params where the job expects FULL [params-type, during verify]
            0.0s warn: c failed in round 1: sent NUM_STEPS_CURRENT_ROUND NaN [misuse, during verify]
            0.0s warn: d failed in round 1: sent NUM_STEPS_CURRENT_ROUND -1 [misuse, during verify]
            0.0s fold r1#0 on init: e*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a failed (misuse), b failed (params-type), c failed (misuse), d failed (misuse), e*1
            0.0s completed 1 round with 1 of 5 sites (all rounds are done); a missed round 1: sent metrics without params for a training task [misuse, during send]; b missed round 1: sent DIFF params where the job expects FULL [params-type, during verify]; c missed round 1: sent NUM_STEPS_CURRENT_ROUND NaN [misuse, during verify]; d missed round 1: sent NUM_STEPS_CURRENT_ROUND -1 [misuse, during verify]
        "#]],
    );
    check(
        "sites a b; min 1; start without model; a ok DIFF; b ok",
        expect![[r#"
            0.0s train r1: a b get none
            0.0s warn: a failed in round 1: sent DIFF params, and there is no model yet that they could be added to [params-type, during verify]
            0.0s fold r1#0 on none: b*1
            0.0s save latest g1
            0.0s commit r1 none>g1: a failed (params-type), b*1
            0.0s completed 1 round with 1 of 2 sites (all rounds are done); a missed round 1: sent DIFF params, and there is no model yet that they could be added to [params-type, during verify]
        "#]],
    );
}

#[test]
fn the_first_model_may_be_whole_where_diffs_are_expected() {
    check(
        "sites a b; min 1; rounds 2; type DIFF; start without model; a ok; b ok; a ok; b ok DIFF",
        expect![[r#"
            0.0s train r1: a b get none
            0.0s fold r1#0 on none: a*1, b*1
            0.0s save latest g1
            0.0s commit r1 none>g1: a*1, b*1
            0.0s train r2: a b get g1
            0.0s warn: a failed in round 2: sent FULL params where the job expects DIFF [params-type, during verify]
            0.0s fold r2#0 on g1: b*1 DIFF
            0.0s save latest g2
            0.0s commit r2 g1>g2: a failed (params-type), b*1
            0.0s completed 2 rounds with 1 of 2 sites (all rounds are done); a missed round 2: sent FULL params where the job expects DIFF [params-type, during verify]
        "#]],
    );
}

// Folds.

#[test]
fn a_fold_names_the_sites_at_fault_and_is_done_without_them() {
    check(
        "sites a b c; min 2; fold by hand; show releases; start; a ok; b ok; c ok
         fold fails b; folded",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init
            0.0s fold r1#0 on init: a*1, b*1, c*1
            0.0s warn: b failed in round 1: `w` holds NaN [not-finite, during verify]
            0.0s release b.r1#0
            0.0s fold r1#1 on init: a*1, c*1
            0.0s save latest g1#1
            0.0s commit r1 init>g1#1: a*1, b failed (not-finite), c*1
            0.0s release a.r1#0
            0.0s release c.r1#0
            0.0s release init
            0.0s completed 1 round with 2 of 3 sites (all rounds are done); b missed round 1: `w` holds NaN [not-finite, during verify]
        "#]],
    );
}

#[test]
fn a_fold_that_blames_too_many_ends_the_job() {
    check(
        "sites a b c; min 2; fold by hand; start; a ok; b ok; c ok; fold fails b c",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init
            0.0s fold r1#0 on init: a*1, b*1, c*1
            0.0s warn: b failed in round 1: `w` holds NaN [not-finite, during verify]
            0.0s warn: c failed in round 1: `w` holds NaN [not-finite, during verify]
            0.0s commit r1 init>none: a*1, b failed (not-finite), c failed (not-finite)
            0.0s failed: round 1 needs 2 sites and can get at most 1: b: `w` holds NaN [not-finite, during verify]; c: `w` holds NaN [not-finite, during verify]
        "#]],
    );
}

#[test]
fn a_fold_that_nobody_is_to_blame_for_ends_the_job() {
    check(
        "sites a; fold by hand; start; a ok; fold fails",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s commit r1 init>none: a*1
            0.0s failed: round 1 could not be summed: cannot be summed [internal, during aggregate]
        "#]],
    );
}

#[test]
fn notes_of_a_fold_are_recorded_and_excluded_variables_passed_on() {
    check(
        "sites a; exclude ^bn; exclude head; fold by hand; start; a ok DIFF; folded rounded",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1 DIFF but ^bn head
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1 | rounded
            0.0s completed 1 round (all rounds are done)
        "#]],
    );
}

// Weights and metrics.

#[test]
fn weights_are_site_weight_times_steps() {
    check(
        "sites a b c; rounds 2; weight a 2; weight c 0.5; start
         a ok steps=10 acc=1; b ok steps=none acc=0; c ok steps=0 acc=0.3
         a ok steps=10; b ok steps=none; c ok steps=2",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init
            0.0s warn: b sent no NUM_STEPS_CURRENT_ROUND; the update counts as one step
            0.0s warn: c trained no step in round 1; the update changes nothing
            0.0s fold r1#0 on init: a*20, b*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*20, b*1, c*0 | acc 0.9523809523809523 of 3
            0.0s train r2: a b c get g1
            0.0s fold r2#0 on g1: a*20, b*1, c*1
            0.0s save latest g2
            0.0s commit r2 g1>g2: a*20, b*1, c*1
            0.0s completed 2 rounds (all rounds are done)
        "#]],
    );
}

#[test]
fn a_round_in_which_nobody_trained_fails() {
    check(
        "sites a b; start; a ok steps=0; b ok steps=0",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            0.0s warn: a, b trained no step in round 1; the update changes nothing
            0.0s commit r1 init>none: a*0, b*0
            0.0s failed: round 1 could not be summed: no site trained a step: every NUM_STEPS_CURRENT_ROUND is 0 [misuse, during aggregate] (hint: send how many steps were trained, or leave NUM_STEPS_CURRENT_ROUND out)
        "#]],
    );
}

#[test]
fn a_metric_is_averaged_over_those_that_sent_it() {
    check(
        "sites a b c; start; a ok acc=0.5 loss=1; b ok steps=3 acc=0.9; c ok acc=NaN loss=inf",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init
            0.0s fold r1#0 on init: a*1, b*3, c*1
            0.0s warn: metric `acc` from c in round 1 is NaN or infinite and is left out of the mean
            0.0s warn: metric `loss` from c in round 1 is NaN or infinite and is left out of the mean
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1, b*3, c*1 | acc 0.8 of 2 | loss 1 of 1
            0.0s completed 1 round (all rounds are done)
        "#]],
    );
}

// Selection and stopping.

#[test]
fn metrics_rate_the_model_that_was_handed_out() {
    check(
        "sites a; rounds 4; best loss min; start
         a ok loss=0.9; a ok loss=0.4; a ok loss=0.4; a ok loss=0.6",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s save best init
            0.0s commit r1 init>g1: a*1 | loss 0.9 of 1 | best init
            0.0s train r2: a get g1
            0.0s fold r2#0 on g1: a*1
            0.0s save latest g2
            0.0s save best g1
            0.0s commit r2 g1>g2: a*1 | loss 0.4 of 1 | best g1
            0.0s train r3: a get g2
            0.0s fold r3#0 on g2: a*1
            0.0s save latest g3
            0.0s commit r3 g2>g3: a*1 | loss 0.4 of 1
            0.0s train r4: a get g3
            0.0s fold r4#0 on g3: a*1
            0.0s save latest g4
            0.0s commit r4 g3>g4: a*1 | loss 0.6 of 1
            0.0s completed 4 rounds (all rounds are done)
        "#]],
    );
}

#[test]
fn a_key_metric_that_nobody_sends_is_said_once() {
    check(
        "sites a; rounds 2; best accuracy max; stop f1 > 0.5; start; a ok acc=0.1; a ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s warn: no site sent the metric `accuracy` in round 1, so no best model is selected; sent: `acc`
            0.0s warn: no site sent the metric `f1` of the stop condition in round 1; sent: `acc`
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1 | acc 0.1 of 1
            0.0s train r2: a get g1
            0.0s fold r2#0 on g1: a*1
            0.0s save latest g2
            0.0s commit r2 g1>g2: a*1
            0.0s completed 2 rounds (all rounds are done)
        "#]],
    );
}

#[test]
fn the_stop_condition_ends_the_job_after_the_round() {
    check(
        "sites a; rounds 9; stop acc >= 0.9; start; a ok acc=0.8; a ok acc=0.9",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1 | acc 0.8 of 1
            0.0s train r2: a get g1
            0.0s fold r2#0 on g1: a*1
            0.0s save latest g2
            0.0s commit r2 g1>g2: a*1 | acc 0.9 of 1
            0.0s completed 2 rounds (stop condition `acc >= 0.9` met at 0.9)
        "#]],
    );
}

#[test]
fn patience_ends_the_job_without_improvement() {
    check(
        "sites a; rounds 9; best acc max; patience 2; start
         a ok acc=0.5; a ok acc=0.6; a ok acc=0.6; a ok; a ok acc=0.1",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s save best init
            0.0s commit r1 init>g1: a*1 | acc 0.5 of 1 | best init
            0.0s train r2: a get g1
            0.0s fold r2#0 on g1: a*1
            0.0s save latest g2
            0.0s save best g1
            0.0s commit r2 g1>g2: a*1 | acc 0.6 of 1 | best g1
            0.0s train r3: a get g2
            0.0s fold r3#0 on g2: a*1
            0.0s save latest g3
            0.0s commit r3 g2>g3: a*1 | acc 0.6 of 1
            0.0s train r4: a get g3
            0.0s fold r4#0 on g3: a*1
            0.0s warn: no site sent the metric `acc` in round 4, so no best model is selected; sent: no metric
            0.0s save latest g4
            0.0s commit r4 g3>g4: a*1
            0.0s train r5: a get g4
            0.0s fold r5#0 on g4: a*1
            0.0s save latest g5
            0.0s commit r5 g4>g5: a*1 | acc 0.1 of 1
            0.0s completed 5 rounds (no improvement in 2 rounds)
        "#]],
    );
}

// Once is once.

#[test]
fn whatever_is_told_twice_counts_once() {
    check(
        "sites a b; rounds 2; start !; a trains !; a ok steps=5 !; a fails !; b ok !
         a ok r0#0; a ok !; b fails !; a joins !",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            0.0s fold r1#0 on init: a*5, b*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*5, b*1
            0.0s train r2: a b get g1
            0.0s warn: b failed in round 2: raised ValueError: x [raised, during train]
            0.0s commit r2 g1>none: a*1, b failed (raised)
            0.0s failed: round 2 needs 2 sites and can get at most 1: b: raised ValueError: x [raised, during train] (hint: see the traceback)
        "#]],
    );
}

#[test]
fn a_site_that_is_not_of_the_job_is_said() {
    check(
        "sites a; show releases; start; stranger joins; stranger ok r0#0; a ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s warn: stranger is not a site of this job
            0.0s warn: stranger is not a site of this job
            0.0s release stranger.r1#0
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1
            0.0s release a.r1#0
            0.0s release init
            0.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn an_abort_stops_everything() {
    check(
        "sites a b; show releases; start; 1s a ok; 2s abort; 3s b ok; 4s abort",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            2.0s commit r1 init>none: a*1, b waiting
            2.0s release a.r1#0
            2.0s cancel b.r1#0: the job has ended
            2.0s aborted: stopped by hand
            3.0s release b.r1#0
        "#]],
    );
}

// Restarts.

#[test]
fn after_a_restart_what_was_asked_is_asked_anew() {
    check(
        "sites a b c; rounds 1; round 60s; start; 10s a ok steps=4; 20s b trains
         30s restart a b; status; 31s b ok r0#0; 32s b ok; 33s c joins; 34s c ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b c get init until 60.0s
            30.0s train r1: b#1 get init until 90.0s
            30.0s status: round 1 of 1: 1 in, 3 needed; waiting for b: not acknowledged since 30.0s; waiting for c: not back since the restart at 30.0s
            31.0s warn: the result of b for round 1 came too late and was dropped
            33.0s train r1: c#1 get init until 90.0s
            34.0s fold r1#0 on init: a*4, b*1, c*1
            34.0s save latest g1
            34.0s commit r1 init>g1: a*4, b*1, c*1
            34.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn after_a_restart_a_lost_update_is_asked_anew() {
    check(
        "sites a b; start; 1s a ok; 2s restart a b without a.r0#0; 3s a ok; 4s b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            2.0s train r1: b#1 get init
            4.0s fold r1#0 on init: a*1, b*1
            4.0s save latest g1
            4.0s commit r1 init>g1: a*1, b*1
            4.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn after_a_restart_a_fold_is_asked_anew() {
    check(
        "sites a b; fold by hand; start; 1s a ok; 1s b ok; 2s restart a b; 3s folded",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            1.0s fold r1#0 on init: a*1, b*1
            2.0s fold r1#1 on init: a*1, b*1
            3.0s save latest g1#1
            3.0s commit r1 init>g1#1: a*1, b*1
            3.0s completed 1 round (all rounds are done)
        "#]],
    );
    check(
        "sites a b; fold by hand; start; 1s a ok; 1s b ok; 2s restart a b without b.r0#0
         3s b ok; 4s folded",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            1.0s fold r1#0 on init: a*1, b*1
            2.0s fold r1#1 on init: a*1, b*1
            4.0s save latest g1#1
            4.0s commit r1 init>g1#1: a*1, b*1
            4.0s completed 1 round (all rounds are done)
        "#]],
    );
}

#[test]
fn a_site_that_does_not_return_after_a_restart_is_missed_when_its_lease_ends() {
    check(
        "sites a b; min 1; start; 1s a ok; 2s restart a; 900s b leaves",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            900.0s warn: b failed in round 1: was not heard of for its lease [disconnected, during train]
            900.0s fold r1#0 on init: a*1
            900.0s save latest g1
            900.0s commit r1 init>g1: a*1, b failed (disconnected)
            900.0s completed 1 round with 1 of 2 sites (all rounds are done); b missed round 1: was not heard of for its lease [disconnected, during train]
        "#]],
    );
}

#[test]
fn a_site_that_is_not_back_when_the_next_round_opens_is_waited_for() {
    check(
        "sites a b; rounds 2; fold by hand; start; 1s a ok; 1s b ok; 2s restart a; 3s folded
         4s status; 5s a ok; 6s b joins; 7s b ok; 8s folded",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            1.0s fold r1#0 on init: a*1, b*1
            2.0s fold r1#1 on init: a*1, b*1
            3.0s save latest g1#1
            3.0s commit r1 init>g1#1: a*1, b*1
            3.0s train r2: a get g1#1
            4.0s status: round 2 of 2: 0 in, 2 needed; waiting for a: not acknowledged since 3.0s; waiting for b: not back since the restart at 2.0s
            6.0s train r2: b get g1#1
            7.0s fold r2#0 on g1#1: a*1, b*1
            8.0s save latest g2
            8.0s commit r2 g1#1>g2: a*1, b*1
            8.0s completed 2 rounds (all rounds are done)
        "#]],
    );
    check(
        "sites a b; rounds 2; fold by hand; start; 1s a ok; 1s b ok; 2s restart a; 3s folded
         5s a ok; 900s b leaves",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            1.0s fold r1#0 on init: a*1, b*1
            2.0s fold r1#1 on init: a*1, b*1
            3.0s save latest g1#1
            3.0s commit r1 init>g1#1: a*1, b*1
            3.0s train r2: a get g1#1
            900.0s warn: b failed in round 2: was not heard of for its lease [disconnected, during train]
            900.0s commit r2 g1#1>none: a*1, b failed (disconnected)
            900.0s failed: round 2 needs 2 sites and can get at most 1: b: was not heard of for its lease [disconnected, during train]
        "#]],
    );
}

#[test]
fn a_restart_while_a_late_task_goes_on_gives_the_site_the_new_round() {
    check(
        "sites a b; min 1; rounds 3; round 10s; late next; start; 1s a ok; 11s tick
         12s restart a b; 13s b ok r0#0; 14s a ok; 15s b ok; 16s a ok; 16s b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init until 10.0s
            10.0s warn: round 1 closed without b (late)
            10.0s fold r1#0 on init: a*1
            10.0s save latest g1
            10.0s commit r1 init>g1: a*1, b late
            10.0s train r2: a get g1 until 20.0s
            12.0s train r2: a#1 b get g1 until 22.0s
            13.0s warn: the result of b for round 1 came too late and was dropped
            15.0s fold r2#0 on g1: a*1, b*1
            15.0s save latest g2
            15.0s commit r2 g1>g2: a*1, b*1
            15.0s train r3: a b get g2 until 25.0s
            16.0s fold r3#0 on g2: a*1, b*1
            16.0s save latest g3
            16.0s commit r3 g2>g3: a*1, b*1
            16.0s completed 3 rounds with 1 of 2 sites (all rounds are done); b missed round 1: had not answered when the round closed: not acknowledged since 0.0s [round-deadline, during train]
        "#]],
    );
}

#[test]
fn a_restart_without_the_global_model_fails() {
    check(
        "sites a; rounds 2; start; a ok; restart a without g0",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1
            0.0s train r2: a get g1
            0.0s train r2: a#1 get g1
        "#]],
    );
}

#[test]
fn a_restart_without_the_best_model_goes_on() {
    check(
        "sites a; rounds 3; best acc max; start; a ok acc=0.9; a ok acc=0.5
         restart a without init; a ok acc=0.6",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s save best init
            0.0s commit r1 init>g1: a*1 | acc 0.9 of 1 | best init
            0.0s train r2: a get g1
            0.0s fold r2#0 on g1: a*1
            0.0s save latest g2
            0.0s commit r2 g1>g2: a*1 | acc 0.5 of 1
            0.0s train r3: a get g2
            0.0s warn: the best model so far (rated in round 1) did not outlive the restart; selection starts anew
            0.0s train r3: a#1 get g2
            0.0s fold r3#0 on g2: a*1
            0.0s save latest g3
            0.0s save best g2
            0.0s commit r3 g2>g3: a*1 | acc 0.6 of 1 | best g2
            0.0s completed 3 rounds (all rounds are done)
        "#]],
    );
}

#[test]
fn a_job_that_failed_or_was_aborted_tries_its_round_again() {
    check(
        "sites a b; rounds 2; on_failure exclude; start; a ok; b ok; 1s a ok; 2s b fails
         10s restart a b; 11s a ok; 12s b ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a b get init
            0.0s fold r1#0 on init: a*1, b*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1, b*1
            0.0s train r2: a b get g1
            2.0s warn: b failed in round 2: raised ValueError: x [raised, during train]
            2.0s dismiss b: raised ValueError: x [raised, during train]
            2.0s commit r2 g1>none: a*1, b failed (raised)
            2.0s failed: round 2 needs 2 sites and can get at most 1: b: raised ValueError: x [raised, during train] (hint: see the traceback)
            10.0s train r2: a#1 b#1 get g1
            12.0s fold r2#0 on g1: a*1, b*1
            12.0s save latest g2
            12.0s commit r2 g1>g2: a*1, b*1
            12.0s completed 2 rounds (all rounds are done)
        "#]],
    );
    check(
        "sites a; rounds 2; start; a ok; 1s abort; 10s restart a; 11s a ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1
            0.0s train r2: a get g1
            1.0s commit r2 g1>none: a waiting
            1.0s cancel a.r2#0: the job has ended
            1.0s aborted: stopped by hand
            10.0s train r2: a#1 get g1
            11.0s fold r2#0 on g1: a*1
            11.0s save latest g2
            11.0s commit r2 g1>g2: a*1
            11.0s completed 2 rounds (all rounds are done)
        "#]],
    );
}

#[test]
fn a_job_that_is_done_goes_on_when_it_is_given_more_rounds() {
    check(
        "sites a; rounds 1; start; a ok; 1s restart a; rounds 2; 2s restart a; 3s a ok",
        expect![[r#"
            0.0s save initial init
            0.0s train r1: a get init
            0.0s fold r1#0 on init: a*1
            0.0s save latest g1
            0.0s commit r1 init>g1: a*1
            0.0s completed 1 round (all rounds are done)
            1.0s completed 1 round (all rounds are done)
            2.0s train r2: a get g1
            3.0s fold r2#0 on g1: a*1
            3.0s save latest g2
            3.0s commit r2 g1>g2: a*1
            3.0s completed 2 rounds (all rounds are done)
        "#]],
    );
}

//! The standard rules, cell by cell, and what holds of any rules.

use firesteel_policy::{
    Action, AdminRole, Category, Decision, Policy, Resource, Role, Subject, decide,
};
use proptest::prelude::*;

fn subject(name: &str, org: &str, role: AdminRole) -> Subject {
    Subject {
        name: name.to_owned(),
        org: org.to_owned(),
        role: Role::Admin(role),
    }
}

/// The answers of one role to one action: of an own job, a job of the own
/// organization, another's job, a site of the own organization, another's site,
/// and nothing in particular. `y` or `-` for each.
fn row(role: AdminRole, action: Action) -> String {
    let me = subject("me@north.org", "north", role);
    [
        Resource::job("me@north.org", "north"),
        Resource::job("she@north.org", "north"),
        Resource::job("he@south.org", "south"),
        Resource::site("north"),
        Resource::site("south"),
        Resource::federation(),
    ]
    .iter()
    .map(|resource| {
        if decide(&me, action, resource).allowed {
            'y'
        } else {
            '-'
        }
    })
    .collect()
}

#[test]
fn the_standard_rules_are_these() {
    use Action::*;
    use AdminRole::*;
    for (action, org_admin, lead, member) in [
        (SubmitJob, "------", "yyyyyy", "------"),
        (BringCode, "------", "yyyyyy", "------"),
        (CloneJob, "------", "y-----", "------"),
        (AbortJob, "yy----", "y-----", "------"),
        (DeleteJob, "yy----", "y-----", "------"),
        (ConfigureJobLog, "yy----", "y-----", "------"),
        (DownloadJob, "yy----", "y-----", "------"),
        (ReadJobLog, "yy----", "y-----", "------"),
        (ListJobs, "yyyyyy", "yyyyyy", "yyyyyy"),
        (ViewJob, "yyyyyy", "yyyyyy", "yyyyyy"),
        (ViewStatus, "yyyyyy", "yyyyyy", "yyyyyy"),
        (ViewStats, "yyyyyy", "yyyyyy", "yyyyyy"),
        (ViewErrors, "yyyyyy", "yyyyyy", "yyyyyy"),
        (SystemInfo, "---y--", "---y--", "------"),
        (ReportResources, "---y--", "---y--", "------"),
        (ReportEnvironment, "---y--", "---y--", "------"),
        (Restart, "---y--", "---y--", "------"),
        (Shutdown, "---y--", "---y--", "------"),
        (RemoveSite, "---y--", "---y--", "------"),
        (DisableSite, "---y--", "---y--", "------"),
        (EnableSite, "---y--", "---y--", "------"),
        (ConfigureSiteLog, "---y--", "---y--", "------"),
        (ReadFiles, "---y--", "---y--", "------"),
    ] {
        assert_eq!(
            row(ProjectAdmin, action),
            "yyyyyy",
            "project_admin {action}"
        );
        assert_eq!(row(OrgAdmin, action), org_admin, "org_admin {action}");
        assert_eq!(row(Lead, action), lead, "lead {action}");
        assert_eq!(row(Member, action), member, "member {action}");
    }
}

#[test]
fn the_reason_is_a_sentence_that_names_all() {
    let me = subject("me@north.org", "north", AdminRole::Lead);
    let Decision { allowed, reason } = decide(
        &me,
        Action::AbortJob,
        &Resource::job("he@south.org", "south"),
    );
    assert!(!allowed);
    assert_eq!(
        reason,
        "`me@north.org` (lead of `north`) may not abort_job: the role's rule allows the submitter, `he@south.org`, only"
    );
    let member = subject("m@north.org", "north", AdminRole::Member);
    assert_eq!(
        decide(&member, Action::SubmitJob, &Resource::federation()).reason,
        "`m@north.org` (member of `north`) may not submit_job: no rule gives it to the role member"
    );
    assert_eq!(
        decide(&member, Action::ListJobs, &Resource::federation()).reason,
        "`m@north.org` (member of `north`) may list_jobs: the role's rule allows everybody of it"
    );
}

#[test]
fn machines_have_no_rights() {
    for role in [Role::Server, Role::Site, Role::Relay] {
        let machine = Subject {
            name: "site-1".to_owned(),
            org: "north".to_owned(),
            role,
        };
        for action in Action::ALL {
            assert!(!decide(&machine, action, &Resource::site("north")).allowed);
        }
    }
}

#[test]
fn an_organization_that_is_empty_is_nobodys() {
    let me = subject("me", "", AdminRole::OrgAdmin);
    assert!(!decide(&me, Action::Shutdown, &Resource::site("")).allowed);
    assert!(!decide(&me, Action::AbortJob, &Resource::job("x", "")).allowed);
}

#[test]
fn own_rules_narrow_and_widen() {
    let lead = subject("me@north.org", "north", AdminRole::Lead);
    let mut policy = Policy::standard();
    policy.set("lead", "operate", &["none"]).unwrap();
    assert!(
        !policy
            .decide(&lead, Action::Restart, &Resource::site("north"))
            .allowed
    );
    // The action's own rule comes before its category's.
    policy.set("lead", "report_env", &["any"]).unwrap();
    assert!(
        policy
            .decide(&lead, Action::ReportEnvironment, &Resource::site("south"))
            .allowed
    );
    policy
        .set(
            "member",
            "submit_job",
            &["o:north", "n:x@y.org", "not n:me@north.org"],
        )
        .unwrap();
    let may = |name: &str, org: &str| {
        let who = subject(name, org, AdminRole::Member);
        policy
            .decide(&who, Action::SubmitJob, &Resource::federation())
            .allowed
    };
    assert!(may("you@north.org", "north"));
    assert!(may("x@y.org", "y"));
    assert!(!may("me@north.org", "north"));
    assert!(!may("z@south.org", "south"));
    // What only excludes allows nobody.
    policy.set("member", "view", &["not o:south"]).unwrap();
    let member = subject("m", "north", AdminRole::Member);
    assert!(
        !policy
            .decide(&member, Action::ListJobs, &Resource::federation())
            .allowed
    );
}

#[test]
fn a_rule_for_everything_is_the_last_one_asked() {
    let mut policy = Policy::nothing();
    policy.set("member", "*", &["any"]).unwrap();
    policy
        .set("member", "manage_job", &["n:submitter"])
        .unwrap();
    let me = subject("me", "north", AdminRole::Member);
    assert!(
        policy
            .decide(&me, Action::Shutdown, &Resource::federation())
            .allowed
    );
    assert!(
        !policy
            .decide(&me, Action::AbortJob, &Resource::job("she", "north"))
            .allowed
    );
}

#[test]
fn what_is_not_known_is_named() {
    let mut policy = Policy::nothing();
    let any = ["any"];
    let error = policy.set("boss", "view", &any).unwrap_err().to_string();
    assert!(
        error.contains("`boss`") && error.contains("org_admin"),
        "{error}"
    );
    let error = policy.set("lead", "fly", &any).unwrap_err().to_string();
    assert!(
        error.contains("`fly`") && error.contains("manage_job"),
        "{error}"
    );
    for bad in ["o:", "n:", "everyone", "", "site", "not not any"] {
        let error = policy.set("lead", "view", &[bad]).unwrap_err().to_string();
        assert!(error.contains("o:site"), "{error}");
    }
    assert_eq!(policy, Policy::nothing());
}

fn a_role() -> impl Strategy<Value = AdminRole> {
    prop::sample::select(AdminRole::ALL.to_vec())
}

fn an_action() -> impl Strategy<Value = Action> {
    prop::sample::select(Action::ALL.to_vec())
}

fn a_word() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["", "a", "b", "submitter", "site"]).prop_map(str::to_owned)
}

fn a_resource() -> impl Strategy<Value = Resource> {
    (
        prop::option::of((a_word(), a_word())),
        prop::option::of(a_word()),
    )
        .prop_map(|(submitter, site_org)| Resource {
            submitter,
            site_org,
        })
}

proptest! {
    #[test]
    fn without_rules_nothing_is_allowed(
        role in a_role(), action in an_action(), resource in a_resource(), name in a_word()
    ) {
        let me = subject(&name, "a", role);
        prop_assert!(!Policy::nothing().decide(&me, action, &resource).allowed);
    }

    #[test]
    fn the_more_powerful_role_may_what_a_member_may(
        role in a_role(), action in an_action(), resource in a_resource()
    ) {
        let member = decide(&subject("a", "a", AdminRole::Member), action, &resource);
        if member.allowed {
            prop_assert!(decide(&subject("a", "a", role), action, &resource).allowed);
        }
        let admin = decide(&subject("a", "a", AdminRole::ProjectAdmin), action, &resource);
        prop_assert!(admin.allowed);
    }

    #[test]
    fn a_stranger_changes_nothing(
        role in prop::sample::select(vec![AdminRole::OrgAdmin, AdminRole::Lead, AdminRole::Member]),
        action in an_action(),
        resource in a_resource(),
    ) {
        // Somebody of no organization and no name of the resource's: beyond looking
        // and a lead's new jobs, nothing.
        let stranger = subject("zoe", "zoo", role);
        let decision = decide(&stranger, action, &resource);
        if decision.allowed {
            let looks = action.category() == Some(Category::View);
            let submits = role == AdminRole::Lead
                && matches!(action, Action::SubmitJob | Action::BringCode);
            prop_assert!(looks || submits, "{}", decision.reason);
        }
    }

    #[test]
    fn every_answer_names_who_and_what(
        role in a_role(), action in an_action(), resource in a_resource(), name in "[a-z]{1,8}"
    ) {
        let decision = decide(&subject(&name, "a", role), action, &resource);
        let said = if decision.allowed { " may " } else { " may not " };
        prop_assert!(decision.reason.contains(&name));
        prop_assert!(decision.reason.contains(action.as_str()));
        prop_assert!(decision.reason.contains(said));
    }

    #[test]
    fn a_block_is_stronger_than_any_allowance(
        role in a_role(), action in an_action(), resource in a_resource()
    ) {
        let mut policy = Policy::nothing();
        policy.set(role.as_str(), action.as_str(), &["any", "not any"]).unwrap();
        prop_assert!(!policy.decide(&subject("a", "a", role), action, &resource).allowed);
    }
}

//! The sample that `firesteel provision --sample` writes.

/// A project file to start from.
pub const SAMPLE: &str = r#"# Who takes part in a federation. `firesteel provision -p project.yml` makes a
# startup kit for each. Every field: docs/reference/project-file.md.
api_version: 3
name: example_project
description: Two hospitals and a server

participants:
  # The one server. Others connect to this name, on this one port.
  - name: server1.example.com
    type: server
    org: example
    fed_learn_port: 8002
    # Further names and addresses it is reached by:
    # host_names: [server1, 10.0.0.4]

  - name: site-1
    type: client
    org: north
  - name: site-2
    type: client
    org: south
    capacity: {num_of_gpus: 2, mem_per_gpu_in_GiB: 24}

  # People. Roles: project_admin, org_admin, lead, member.
  - name: admin@example.com
    type: admin
    org: example
    role: project_admin
  - name: lead@north.example.com
    type: admin
    org: north
    role: lead
"#;

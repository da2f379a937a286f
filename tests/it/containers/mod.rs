//! Goal: the container files (`Dockerfile`, `compose.yaml`, `deploy/kubernetes`) match this agent. Method: the files are
//! parsed in the few forms they use, and compared with each other and with the agent's settings. The container's command is
//! run in an otherwise empty root, by `tests/container/trial.sh`; that needs root.

mod dockerfile;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Args as _;
use dataplane_agent::config::{Config, Origin, Sources};
use serde_json::Value;

use super::env_example::{REQUIRED, default_of};
use dockerfile::Dockerfile;
use yaml::documents;

const KUBERNETES: &str = "deploy/kubernetes";

fn project(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn image() -> Dockerfile {
    Dockerfile::read(&project("Dockerfile"))
}

/// The only document of a file.
fn yaml(path: &str) -> Value {
    let mut documents = documents(path, &project(path));
    assert_eq!(documents.len(), 1, "{path}");
    documents.remove(0)
}

fn default(variable: &str) -> String {
    let command = Config::augment_args(clap::Command::new("settings"));
    let arg = command.get_arguments().find(|arg| arg.get_id() == variable).expect("a setting");
    default_of(arg)
}

fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().unwrap_or_else(|| panic!("a list, and not {value}"));
    list.iter().map(|item| item.as_str().expect("a text").to_owned()).collect()
}

fn variables(value: &Value) -> Vec<(String, String)> {
    let fields = value.as_object().expect("variables").iter();
    fields.map(|(name, value)| (name.clone(), value.as_str().expect("a text").to_owned())).collect()
}

/// An agent starts with these variables, knows each, and has no warnings.
fn assert_starts_with(env: Vec<(String, String)>) {
    let names: BTreeSet<String> = env.iter().map(|(name, _)| name.clone()).collect();
    let config = Config::load(&Sources { env, ..Sources::default() });
    let config = config.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.warnings, [""; 0]);
    let set: BTreeSet<String> = config
        .describe()
        .iter()
        .filter(|setting| !matches!(setting.origin, Origin::Default))
        .map(|setting| match &setting.origin {
            Origin::File(_) => format!("{}_FILE", setting.name),
            _ => setting.name.clone(),
        })
        .collect();
    assert_eq!(set, names, "every variable is a setting's");
}

/// A duration with the unit s.
fn seconds(text: &str) -> Duration {
    Duration::from_secs(text.trim_end_matches('s').parse().unwrap_or_else(|_| panic!("{text}: no seconds")))
}

/// The agent has finished requests in flight and committed by then.
fn assert_is_enough_to_stop(grace: Duration) {
    assert!(grace >= seconds(&default("SHUTDOWN_TIMEOUT_SECONDS")) + Duration::from_secs(5), "{grace:?}");
}

#[test]
fn the_image_runs_the_agent_as_a_user_of_its_own() {
    let image = image();
    assert_eq!(image.stages.len(), 2, "what builds it is not in it");
    let toolchain = format!("rust:{}-", env!("CARGO_PKG_RUST_VERSION"));
    assert!(image.stages[0].contains(&toolchain), "{}: {toolchain}", image.stages[0]);
    assert_eq!(image.one("ENTRYPOINT"), r#"["/usr/bin/dataplane-agent"]"#);
    assert_eq!(image.list("CMD"), ["run"]);
    assert_eq!(image.one("EXPOSE"), default("SERVER_PORT"));
    assert_eq!(image.one("STOPSIGNAL"), "SIGTERM");
    let (user, group) = image.one("USER").split_once(':').expect("user and group");
    assert!(user == group && user.parse::<u32>().is_ok_and(|user| user >= 1000), "by number, and not root");
    assert!(image.instructions.iter().any(|(name, rest)| {
        name == "COPY" && rest.contains(&format!("--chown={user}:{group} ")) && rest.ends_with(&image.state())
    }));
    let env = image.env();
    assert_eq!(env["OUTBOX_DIR"], format!("{}/outbox", image.state()), "the outbox is in the volume");
    let required = REQUIRED.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_starts_with(env.into_iter().chain(required).collect());
    assert!(image.health_check().starts_with(&image.list("ENTRYPOINT")), "there is nothing else in it");
}

#[test]
fn compose_starts_redis_the_sandbox_and_an_agent_between_them() {
    let (image, compose) = (image(), yaml("compose.yaml"));
    let services = &compose["services"];
    let port = default("SERVER_PORT");
    for name in ["agent", "sandbox"] {
        let service = &services[name];
        assert_eq!(service["read_only"], true, "{name}");
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        assert_eq!(service["image"], "dataplane-agent", "{name}");
        assert!(service.get("user").is_none(), "{name}: the image's");
    }
    for (name, service) in services.as_object().expect("services") {
        for published in texts(&service["ports"]) {
            assert!(published.starts_with("127.0.0.1:"), "{name}: {published} is for everybody");
        }
    }
    let agent = &services["agent"];
    assert_eq!(texts(&agent["ports"]), [format!("127.0.0.1:{port}:{port}")]);
    assert_eq!(texts(&agent["volumes"]), [format!("outbox:{}", image.state())]);
    assert!(compose["volumes"]["outbox"].is_object());
    assert_is_enough_to_stop(seconds(agent["stop_grace_period"].as_str().expect("a time")));

    let env: BTreeMap<_, _> = image.env().into_iter().chain(variables(&agent["environment"])).collect();
    assert_eq!(env["REDIS_HOST"], "redis");
    assert!(services["redis"]["image"].as_str().is_some_and(|image| image.starts_with("redis:7")));
    let redis = texts(&services["redis"]["command"]);
    assert!(redis.windows(2).any(|pair| pair == ["--appendonly", "yes"]), "{redis:?}");
    let sandbox = texts(&services["sandbox"]["command"]);
    let listen = sandbox.iter().skip_while(|word| *word != "--listen").nth(1).expect("an address");
    let (_, sandbox_port) = listen.split_once(':').expect("a port");
    assert_eq!(env["CONTROL_PLANE_URL"], format!("http://sandbox:{sandbox_port}"));
    assert_starts_with(env.into_iter().collect());
}

#[test]
fn kubernetes_probes_the_process_and_gives_it_what_the_image_expects() {
    let image = image();
    let set = yaml(&format!("{KUBERNETES}/statefulset.yaml"));
    let pod = &set["spec"]["template"]["spec"];
    let agent = &pod["containers"][0];
    for (probe, path) in
        [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
    {
        assert_eq!(agent[probe]["httpGet"]["path"], path, "{probe}");
        assert_eq!(agent[probe]["httpGet"]["port"], agent["ports"][0]["name"], "{probe}");
    }
    // As long as systemd allows: a large outbox is examined first.
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a number, and not {value}"));
    let startup = &agent["startupProbe"];
    assert!(number(&startup["periodSeconds"]) * number(&startup["failureThreshold"]) >= 300);
    assert_eq!(number(&agent["ports"][0]["containerPort"]).to_string(), default("SERVER_PORT"));
    assert_is_enough_to_stop(Duration::from_secs(number(&pod["terminationGracePeriodSeconds"])));

    let security = &pod["securityContext"];
    assert_eq!(security["runAsNonRoot"], true);
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert_eq!(number(&security[field]).to_string(), image.user(), "{field}");
    }
    assert_eq!(agent["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(agent["securityContext"]["allowPrivilegeEscalation"], false);
    assert_eq!(texts(&agent["securityContext"]["capabilities"]["drop"]), ["ALL"]);
    assert_eq!(agent["image"], "dataplane-agent");
    assert_eq!(texts(&agent["args"]), image.list("CMD"));
    // Otherwise a service named redis would set REDIS_PORT.
    assert_eq!(pod["enableServiceLinks"], false);

    let mounts = agent["volumeMounts"].as_array().expect("mounts");
    let mounted = |name: &str| mounts.iter().find(|mount| mount["name"] == name).expect("a mount");
    assert_eq!(mounted("outbox")["mountPath"], image.state());
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "outbox");
    let settings = yaml(&format!("{KUBERNETES}/configmap.yaml"));
    let secrets = yaml(&format!("{KUBERNETES}/secret.yaml"));
    assert_eq!(agent["envFrom"][0]["configMapRef"]["name"], settings["metadata"]["name"]);
    assert_eq!(pod["volumes"][0]["secret"]["secretName"], secrets["metadata"]["name"]);

    // The variables as the pod gets them, with the secrets' files as they would be mounted.
    let files = tempfile::tempdir().expect("a folder");
    for (key, secret) in variables(&secrets["stringData"]) {
        std::fs::write(files.path().join(key), secret).expect("a file");
    }
    let secrets_at = mounted("secrets")["mountPath"].as_str().expect("a path");
    let mut env = image.env();
    env.extend(variables(&settings["data"]));
    for variable in agent["env"].as_array().expect("variables") {
        let name = variable["name"].as_str().expect("a name").to_owned();
        let value = match variable["value"].as_str() {
            Some(value) => value.replace(secrets_at, files.path().to_str().expect("a path")),
            None => {
                assert_eq!(variable["valueFrom"]["fieldRef"]["fieldPath"], "metadata.name");
                "dataplane-agent-0".to_owned()
            }
        };
        env.insert(name, value);
    }
    assert_starts_with(env.into_iter().collect());
}

#[test]
fn kubernetes_manifests_belong_together() {
    let kustomization = yaml(&format!("{KUBERNETES}/kustomization.yaml"));
    let listed: BTreeSet<_> = texts(&kustomization["resources"]).into_iter().collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(KUBERNETES);
    let files =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let there: BTreeSet<_> = files.map(|name| name.to_str().expect("UTF-8").to_owned()).collect();
    assert_eq!(
        listed.iter().chain(["kustomization.yaml".to_owned()].iter()).cloned().collect::<BTreeSet<_>>(),
        there
    );
    assert_eq!(kustomization["images"][0]["newTag"], env!("CARGO_PKG_VERSION"));

    let (set, service) =
        (yaml(&format!("{KUBERNETES}/statefulset.yaml")), yaml(&format!("{KUBERNETES}/service.yaml")));
    for file in &listed {
        let manifest = yaml(&format!("{KUBERNETES}/{file}"));
        assert_eq!(manifest["metadata"]["name"], "dataplane-agent", "{file}");
        let kind = manifest["kind"].as_str().expect("a kind").to_lowercase();
        assert_eq!(*file, format!("{kind}.yaml"));
        let version = if kind == "statefulset" { "apps/v1" } else { "v1" };
        assert_eq!(manifest["apiVersion"], version, "{file}");
    }
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    assert_eq!(set["spec"]["selector"]["matchLabels"], *labels);
    assert_eq!(service["spec"]["selector"], *labels);
    assert_eq!(set["spec"]["serviceName"], service["metadata"]["name"]);
    let port = &service["spec"]["ports"][0];
    assert_eq!(port["port"].to_string(), default("SERVER_PORT"));
    assert_eq!(port["targetPort"], set["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"]);
}

#[test]
fn the_containers_command_runs_in_a_read_only_root_that_holds_nothing_else() {
    let namespaces = Command::new("unshare").args(["--net", "--mount", "--pid", "--fork", "true"]).status();
    if !rustix::process::geteuid().is_root() || !namespaces.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI must not go without namespaces");
        return eprintln!("SKIPPED: namespaces need root");
    }
    let image = image();
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/container/trial.sh"));
    command.arg(env!("CARGO_BIN_EXE_dataplane-agent")).args([image.user(), &image.state()]);
    command.args(image.list("ENTRYPOINT")).args(image.list("CMD")).arg("--").args(image.health_check());
    let required = REQUIRED.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let path = std::env::var_os("PATH").expect("a PATH");
    let env: BTreeMap<_, _> = required.into_iter().chain(image.env()).collect();
    // Plain HTTP: that root contains no certificate authorities.
    let env = env.into_iter().chain([("CONTROL_PLANE_URL".to_owned(), "http://127.0.0.1:1".to_owned())]);
    let output = command.env_clear().env("PATH", path).envs(env).output().expect("bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

//! The environment of code that is under test: everything but secrets.
//!
//! What a pull request wrote is built and run by the gate. It gets the variables that tools need, and none whose name
//! says that it is somebody's key.

use std::process::Command;

/// Parts of the names of variables that hold secrets.
const SECRET_PARTS: [&str; 7] = ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "_KEY", "ATTNBENCH_STORE"];

/// Takes variables that look like secrets out of a command's environment.
pub fn without_secrets(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_secret(&name.to_string_lossy())) {
        command.env_remove(name);
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_uppercase();
    SECRET_PARTS.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::is_secret;

    #[test]
    fn secrets_by_their_names() {
        let secret = ["GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "cargo_registry_token", "ATTNBENCH_STORE"];
        for name in secret {
            assert!(is_secret(name), "{name}");
        }
        for name in
            ["PATH", "HOME", "RUSTFLAGS", "CARGO_HOME", "LD_LIBRARY_PATH", "HTTPS_PROXY", "CUDA_VISIBLE_DEVICES"]
        {
            assert!(!is_secret(name), "{name}");
        }
    }
}

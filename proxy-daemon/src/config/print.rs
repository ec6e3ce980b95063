//! The default file: every key with what it means, commented out.
use super::table;

const HEAD: &str = "\
# The configuration of `retryscope daemon`.
#
# Every key is shown with its default, or where it has none with an example.
# `retryscope config check FILE` tells what is wrong with a file, and
# `retryscope reload` puts it in force without dropping a connection.
";

/// The file that `retryscope config default` prints.
pub fn default_file() -> String {
    let mut text = HEAD.to_owned();
    for (name, about, keys) in table::all() {
        text.push('\n');
        about.iter().for_each(|line| text.push_str(&format!("#{line}\n")));
        if !name.is_empty() {
            text.push_str(&format!("[{name}]\n"));
        }
        for key in keys {
            text.push('\n');
            key.doc.iter().for_each(|line| text.push_str(&format!("#{line}\n")));
            let example = if key.example { "  # an example" } else { "" };
            text.push_str(&format!("#{} = {}{example}\n", key.name, key.shown));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_default_file_says_what_holds() {
        let text = default_file();
        let read: Config = toml::from_str(&text).expect("the default file is valid");
        assert_eq!(read, Config::default());
        // Every default, uncommented, is the default still.
        let mut said = String::new();
        for line in text.lines() {
            let key = line.strip_prefix('#').filter(|rest| rest.starts_with(|char: char| char.is_ascii_lowercase()));
            match key {
                Some(key) if !key.ends_with("# an example") && key.contains(" = ") => said.push_str(key),
                _ => said.push_str(line),
            }
            said.push('\n');
        }
        assert_eq!(toml::from_str::<Config>(&said).expect("valid"), Config::default());
        assert!(said.contains("\nports = [443]\n"));
    }

    /// What a package installs is what the types say.
    #[test]
    fn the_packages_file_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/debian/config.toml");
        if std::env::var_os("RETRYSCOPE_BLESS").is_some() {
            return std::fs::write(path, default_file()).expect("writing");
        }
        let packaged = std::fs::read_to_string(path).expect("the file");
        assert!(packaged == default_file(), "run this test with RETRYSCOPE_BLESS=1 to write {path} anew");
    }

    #[test]
    fn examples_are_valid() {
        let text: String = default_file()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|char: char| char.is_ascii_lowercase()) => format!("{rest}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config: Config = toml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_ne!(config, Config::default());
    }
}

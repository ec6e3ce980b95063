//! A table of the file: a type whose fields' documentation is the file's.
use serde::de::DeserializeOwned;

/// What the default file says of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// Lines.
    pub(super) doc: &'static [&'static str],
    /// A value, as in the file.
    pub(super) shown: &'static str,
    /// `shown` is an example, not the default.
    pub(super) example: bool,
}

/// A table, as the file spells it.
pub(super) trait Table: Default + DeserializeOwned {
    /// Empty for the file itself.
    const NAME: &'static str;
    const DOC: &'static [&'static str];
    const KEYS: &'static [Key];
}

macro_rules! table {
    (
        $(#[doc = $about:literal])*
        $vis:vis struct $name:ident in $table:literal {
            $( $(#[doc = $doc:literal])* $key:ident: $type:ty = $default:expr => $kind:ident $shown:literal; )*
        }
        $(tables { $( $inner:ident: $inner_type:ident, )* })?
    ) => { $crate::config::table::table!(@
        [$(#[doc = $about])*] $vis $name $table
        [$( [$(#[doc = $doc])*] $key [$type] [$default] $kind $shown )*]
        [$($( $inner $inner_type )*)?]
    ); };
    (@
        [$(#[doc = $about:literal])*] $vis:vis $name:ident $table:literal
        [$( [$(#[doc = $doc:literal])*] $key:ident [$type:ty] [$default:expr] $kind:ident $shown:literal )*]
        [$( $inner:ident $inner_type:ident )*]
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        $vis struct $name {
            $( $(#[doc = $doc])* pub $key: $type, )*
            $( pub $inner: $inner_type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )* $( $inner: Default::default(), )* }
            }
        }

        impl $crate::config::table::Table for $name {
            const NAME: &'static str = $table;
            const DOC: &'static [&'static str] = &[$($about),*];
            const KEYS: &'static [$crate::config::table::Key] = &[$(
                $crate::config::table::table!(@key $key [$($doc),*] $kind $shown)
            ),*];
        }
    };
    (@key $key:ident [$($doc:literal),*] example $shown:literal) => {
        $crate::config::table::Key { name: stringify!($key), doc: &[$($doc),*], shown: $shown, example: true }
    };
    (@key $key:ident [$($doc:literal),*] default $shown:literal) => {
        $crate::config::table::Key { name: stringify!($key), doc: &[$($doc),*], shown: $shown, example: false }
    };
}
pub(super) use table;

/// Every table of the file: name, what it is for, keys.
pub(super) fn all() -> [(&'static str, &'static [&'static str], &'static [Key]); 10] {
    use super::{Config, Control, Events, Log, Metrics, Otlp, Recording, Rules, Statsd, Targets};
    fn of<T: Table>() -> (&'static str, &'static [&'static str], &'static [Key]) {
        (T::NAME, T::DOC, T::KEYS)
    }
    [
        of::<Config>(),
        of::<Targets>(),
        of::<Rules>(),
        of::<Control>(),
        of::<Log>(),
        of::<Metrics>(),
        of::<Statsd>(),
        of::<Otlp>(),
        of::<Events>(),
        of::<Recording>(),
    ]
}

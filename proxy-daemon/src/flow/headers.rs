//! Header fields as they were on the wire: order, case and bytes kept.
use std::fmt;

use bytes::{Bytes, BytesMut};

/// An ordered list of fields that share one buffer. Names are compared
/// without case; a field may appear more than once.
#[derive(Clone, Default)]
pub struct Headers {
    bytes: Bytes,
    fields: Vec<Field>,
}

/// Offsets into the shared buffer.
#[derive(Clone, Copy)]
struct Field {
    name: (u32, u32),
    value: (u32, u32),
}

impl Headers {
    /// Fields that already lie within `bytes`. A name or value that does not
    /// (which would be our own error) is left out.
    pub fn within<'a>(bytes: Bytes, fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let base = bytes.as_ptr().addr();
        let place = |part: &[u8]| {
            let at = part.as_ptr().addr().checked_sub(base)?;
            let end = at.checked_add(part.len())?;
            (end <= bytes.len()).then_some(())?;
            Some((u32::try_from(at).ok()?, u32::try_from(end).ok()?))
        };
        let fields = fields
            .filter_map(|(name, value)| {
                let value = if value.is_empty() { (0, 0) } else { place(value)? };
                Some(Field { name: place(name)?, value })
            })
            .collect();
        Self { bytes, fields }
    }

    /// Copies the fields into a buffer of their own.
    pub fn copied<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut bytes = BytesMut::new();
        let mut places = Vec::new();
        let mut put = |part: &[u8]| {
            let at = u32::try_from(bytes.len()).ok()?;
            bytes.extend_from_slice(part);
            Some((at, u32::try_from(bytes.len()).ok()?))
        };
        for (name, value) in fields {
            let (Some(name), Some(value)) = (put(name), put(value)) else { break };
            places.push(Field { name, value });
        }
        Self { bytes: bytes.freeze(), fields: places }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|field| (self.part(field.name), self.part(field.value)))
    }

    /// The first field of this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.all(name).next()
    }

    /// The first field of this name, if it is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// What it takes, of a buffer of its own.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.fields.capacity() * size_of::<Field>()
    }

    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    fn part(&self, (start, end): (u32, u32)) -> &[u8] {
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(name, value)| (String::from_utf8_lossy(name), String::from_utf8_lossy(value))))
            .finish()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(fields: I) -> Self {
        Self::copied(fields.into_iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_case_and_repeats() {
        let headers: Headers = [("Host", "a"), ("X-One", "1"), ("x-one", "2")].into_iter().collect();
        assert_eq!(headers.text("HOST"), Some("a"));
        assert_eq!(headers.all("x-ONE").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(headers.get("absent"), None);
        assert_eq!(headers.iter().map(|(name, _)| name).collect::<Vec<_>>(), [&b"Host"[..], b"X-One", b"x-one"]);
    }

    #[test]
    fn shares_the_buffer_it_was_read_into() {
        let head = Bytes::from_static(b"Host: a\r\nEmpty:\r\n");
        let view = head.clone();
        let headers = Headers::within(head, [(&view[0..4], &view[6..7]), (&view[9..14], &view[15..15])].into_iter());
        assert_eq!(headers.text("host"), Some("a"));
        assert_eq!(headers.text("empty"), Some(""));
        assert_eq!(headers.len(), 2);
    }
}

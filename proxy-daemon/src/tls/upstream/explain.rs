//! What a failed handshake with an upstream comes to.
//!
//! In: the error. Out: the alert that the client gets in the upstream's
//! place, a sentence for the person at the keyboard, or that the failure may
//! be ours alone ([`beyond`]).
use std::io;

use rustls::{AlertDescription, CertificateError, Error};

use super::{Asked, verify::Unjudged};

/// Why an upstream is beyond us, where it is: the client may fare better, so
/// its connection is passed on untouched. Nothing is hidden by that: whom to
/// trust, the client decides.
pub fn beyond(error: &io::Error) -> Option<&'static str> {
    const UNSPOKEN: &str = "the upstream speaks no TLS version or cipher that retryscope does";
    const UNJUDGED: &str = "the upstream's certificate is of a kind that clients judge differently";
    match tls_error(error)? {
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Some(UNSPOKEN),
        Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::MissingExtension
            | AlertDescription::UnsupportedExtension
            | AlertDescription::NoApplicationProtocol,
        ) => Some(UNSPOKEN),
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::Other(reason) if reason.0.is::<Unjudged>() => Some(UNJUDGED),
            CertificateError::UnhandledCriticalExtension
            | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Some(UNJUDGED),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the upstream's certificate is what failed.
pub fn is_distrust(error: &io::Error) -> bool {
    matches!(tls_error(error), Some(Error::InvalidCertificate(_)))
}

/// rustls's error inside one of the stream's.
pub(in crate::tls) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// The alert a client would have sent itself, had it met this upstream; none
/// where the failure is not TLS's (a reset, an end of stream) and is to be
/// mirrored as what it is.
pub fn mirror_alert(error: &io::Error) -> Option<u8> {
    let alert = match tls_error(error)? {
        Error::AlertReceived(AlertDescription::CloseNotify) => return None,
        Error::AlertReceived(theirs) => *theirs,
        Error::InvalidCertificate(reason) => AlertDescription::from(reason.clone()),
        Error::NoCertificatesPresented => AlertDescription::DecodeError,
        Error::NoApplicationProtocol => AlertDescription::NoApplicationProtocol,
        Error::PeerIncompatible(_) => AlertDescription::HandshakeFailure,
        Error::PeerMisbehaved(_) => AlertDescription::IllegalParameter,
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            AlertDescription::UnexpectedMessage
        }
        Error::InvalidMessage(_) => AlertDescription::DecodeError,
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
        _ => AlertDescription::InternalError,
    };
    Some(u8::from(alert))
}

/// Whether the failure is our judgement of the upstream, and not what the
/// upstream said: a client by itself might have judged otherwise.
pub fn is_raised_here(error: &io::Error) -> bool {
    tls_error(error).is_some_and(|error| !matches!(error, Error::AlertReceived(_)))
}

/// A fatal alert as a record of its own, in the clear: what a server may send
/// before its hello, in TLS 1.2 (RFC 5246 §7.2) and 1.3 (RFC 8446 §6) alike.
pub fn alert_record(description: u8) -> [u8; 7] {
    const CONTENT_ALERT: u8 = 21;
    const FATAL: u8 = 2;
    [CONTENT_ALERT, 3, 3, 0, 2, FATAL, description]
}

/// One sentence on why there is no TLS to the upstream `name`: the cause, and
/// what can be done where something can.
pub fn explain(error: &io::Error, name: &str, asked: &Asked) -> String {
    if *asked == Asked::Shown && !is_distrust(error) {
        return format!(
            "{name} asked for a client certificate and ended the TLS handshake when it was shown the one of --client-cert ({error}); is it the one that {name} knows, and still valid?"
        );
    }
    let Some(tls) = tls_error(error) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("{name} closed the connection during the TLS handshake"),
            _ => format!("the TLS handshake with {name} ended: {error}"),
        };
    };
    match tls {
        Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                format!("the certificate of {name} has expired; the client got the alert it would have raised itself")
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                format!("the certificate of {name} is not valid yet; is this machine's clock right?")
            }
            CertificateError::UnknownIssuer => format!(
                "the certificate of {name} was issued by an authority this system does not know; if it is yours, name its certificate with `--upstream-ca FILE`, or leave the host alone with `--passthrough {name}`"
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                let shown = match reason {
                    CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => {
                        format!(" (it is for {})", some_of(presented))
                    }
                    _ => String::new(),
                };
                format!(
                    "the certificate of {name} is not valid for that name{shown}; if the client does not mind, leave the host alone with `--passthrough {name}`"
                )
            }
            CertificateError::BadSignature => format!(
                "the certificate of {name} names an authority that is known, but was signed with another key; was that authority made anew? Name its present certificate with `--upstream-ca FILE`"
            ),
            CertificateError::Revoked => format!("the certificate of {name} has been revoked"),
            other => format!(
                "the certificate of {name} does not hold: {other}; `--passthrough {name}` leaves the host alone"
            ),
        },
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            format!("{name} demands a client certificate; give one with `--client-cert PEM`")
        }
        Error::AlertReceived(alert) => format!(
            "{name} ended the TLS handshake with the alert {alert:?}; if it does not do so to the client itself, use `--passthrough {name}`"
        ),
        Error::PeerIncompatible(reason) => format!(
            "{name} speaks no TLS version or cipher that retryscope does ({reason:?}); use `--passthrough {name}`"
        ),
        Error::InvalidMessage(_) => {
            format!("what answers at {name} does not speak TLS; is it the right port?")
        }
        other => format!("the TLS handshake with {name} failed: {other}"),
    }
}

/// A certificate may carry hundreds of names, and its owner chooses them.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let mut text: Vec<String> =
        names.iter().take(SHOWN).map(|name| name.chars().filter(|c| !c.is_control()).take(80).collect()).collect();
    if names.len() > SHOWN {
        text.push(format!("{} more", names.len() - SHOWN));
    }
    text.join(", ")
}

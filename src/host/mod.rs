//! What we do to the kernel, and what it tells us.

/// Why the kernel still has something of ours.
#[derive(Debug, thiserror::Error)]
#[error("tapir0 can't be removed")]
pub struct UninstallError;

/// Removes `tapir0`, and with it the routes through it; whether it was there.
///
/// # Errors
/// [`UninstallError`].
pub fn uninstall() -> Result<bool, UninstallError> {
    Err(UninstallError)
}

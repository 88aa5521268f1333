//! The instruction sets of this machine.

use std::{error::Error, ffi::OsStr, fmt, str::FromStr, sync::OnceLock};

#[cfg(target_arch = "aarch64")]
use fearless_simd::Neon;
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
use fearless_simd::{Avx2, Avx512};
use fearless_simd::{Fallback, Level};

/// The environment variable that names an instruction set.
const VARIABLE: &str = "DELTALLM_SIMD";

/// An instruction set that this machine has. A value of this type is the proof of it.
///
/// Programs and tests start with [`from_env`](Self::from_env), which lets the environment variable `DELTALLM_SIMD` (`scalar`, `avx2`, `avx512` or
/// `neon`) choose; nothing else reads it.
///
/// The variants carry the tokens of the crate `fearless_simd`, for the kernels. They are no part of the promises of the crates
/// that re-export this type.
///
/// ```
/// use deltallm_simd::Isa;
///
/// let isa = Isa::from_env()?;
/// assert!(Isa::available().contains(&isa));
/// // The same results on every CPU, for a test.
/// let scalar: Isa = "scalar".parse()?;
/// assert_eq!(scalar.name(), "scalar");
/// # Ok::<(), deltallm_simd::IsaError>(())
/// ```
#[derive(Clone, Copy)]
pub enum Isa {
    /// Without vector instructions; every machine has it.
    Scalar(Fallback),
    /// AVX2 with FMA and F16C (x86-64-v3).
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    Avx2(Avx2),
    /// AVX-512 as Ice Lake has it: with VNNI, VBMI2 and more.
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    Avx512(Avx512),
    /// NEON of 64-bit Arm.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Isa {
    /// All that this machine has, slowest first. `scalar` is always there.
    pub fn available() -> Vec<Self> {
        let detected = Level::new();
        let scalar = Self::Scalar(Fallback::new());
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        let faster = [detected.as_avx2().map(Self::Avx2), detected.as_avx512().map(Self::Avx512)];
        #[cfg(target_arch = "aarch64")]
        let faster = [detected.as_neon().map(Self::Neon)];
        #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
        let faster: [Option<Self>; 0] = {
            let _ = detected;
            []
        };
        [Some(scalar)].into_iter().chain(faster).flatten().collect()
    }

    /// The fastest that this machine has.
    #[inline]
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        // Never empty: the list starts with `scalar`.
        *BEST.get_or_init(|| Self::available().pop().unwrap_or(Self::Scalar(Fallback::new())))
    }

    /// The one that `DELTALLM_SIMD` names, or the [best](Self::best) where it is not set or empty. For the start of a program, a test or a library's
    /// first call from C.
    ///
    /// # Errors
    /// [`IsaError`] when the variable is set to something else than the name of an instruction set that this machine has.
    pub fn from_env() -> Result<Self, IsaError> {
        std::env::var_os(VARIABLE).map_or(Ok(Self::best()), |name| Self::of_variable(&name))
    }

    fn of_variable(name: &OsStr) -> Result<Self, IsaError> {
        if name.is_empty() {
            return Ok(Self::best()); // as shells have it: `DELTALLM_SIMD= program`
        }
        let unknown = || IsaError::new(&name.to_string_lossy());
        let isa = name.to_str().map_or_else(|| Err(unknown()), str::parse);
        isa.map_err(|error| IsaError { variable: true, ..error })
    }

    /// `scalar`, `avx2`, `avx512` or `neon`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar(_) => "scalar",
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx2(_) => "avx2",
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
        }
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        Self::available().into_iter().find(|isa| isa.name() == name).ok_or_else(|| IsaError::new(name))
    }
}

impl PartialEq for Isa {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Isa {}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is not that of an instruction set of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsaError {
    /// Whether the name came from the environment.
    variable: bool,
    got: String,
}

impl IsaError {
    fn new(name: &str) -> Self {
        Self { variable: false, got: name.to_owned() }
    }
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.variable {
            write!(f, "{VARIABLE}: ")?;
        }
        let names: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
        let (names, got) = (names.join(", "), &self.got);
        write!(f, "expected an instruction set that this machine has, one of {names}, got {got:?}")
    }
}

impl Error for IsaError {}

/// Runs an expression with the token of an instruction set, inside a function that is compiled for it.
///
/// Functions that the expression calls must be `#[inline(always)]`, or they are compiled without the instructions. The expression
/// is a closure's: `return` and `?` do not leave the function around it.
///
/// ```
/// use deltallm_simd::{Isa, dispatch, fearless_simd::prelude::*};
///
/// #[inline(always)]
/// fn lanes<S: Simd>(_: S) -> usize {
///     S::f32s::LEN
/// }
///
/// assert!(dispatch!(Isa::best(), simd => lanes(simd)) >= 4);
/// ```
#[macro_export]
macro_rules! dispatch {
    ($isa:expr, $simd:ident => $op:expr) => {
        match $isa {
            $crate::Isa::Scalar($simd) => $crate::fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            $crate::Isa::Avx2($simd) => $crate::fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
            #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
            $crate::Isa::Avx512($simd) => $crate::fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
            #[cfg(target_arch = "aarch64")]
            $crate::Isa::Neon($simd) => $crate::fearless_simd::Simd::vectorize(
                $simd,
                #[inline(always)]
                || $op,
            ),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_found_by_its_name_and_no_other() {
        for isa in Isa::available() {
            assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
            assert_eq!(isa.to_string(), isa.name());
        }
        for name in ["sse9", "", "AVX2", "scalar "] {
            let error = name.parse::<Isa>().unwrap_err().to_string();
            assert!(error.contains(&format!("{name:?}")) && error.contains("scalar"), "{error}");
            assert!(!error.contains("DELTALLM_SIMD"), "{error}");
        }
    }

    #[test]
    fn the_best_is_the_last() {
        assert_eq!(Isa::available()[0].name(), "scalar");
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
    }

    #[test]
    fn the_environment_names_one_or_is_an_error_that_says_so() {
        assert_eq!(Isa::of_variable(OsStr::new("scalar")).unwrap().name(), "scalar");
        assert_eq!(Isa::of_variable(OsStr::new("")).unwrap(), Isa::best());
        let error = Isa::of_variable(OsStr::new("sse9")).unwrap_err().to_string();
        assert!(error.starts_with("DELTALLM_SIMD: ") && error.contains("\"sse9\""), "{error}");
        #[cfg(unix)]
        {
            let name: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"avx\xff2");
            assert!(Isa::of_variable(name).unwrap_err().to_string().contains("avx"));
        }
    }

    #[test]
    fn an_expression_gets_the_token_that_was_asked_for() {
        for isa in Isa::available() {
            let same = dispatch!(isa, simd => Isa::from(simd) == isa);
            assert!(same, "{isa}");
        }
    }

    impl From<Fallback> for Isa {
        fn from(token: Fallback) -> Self {
            Self::Scalar(token)
        }
    }

    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    impl From<Avx2> for Isa {
        fn from(token: Avx2) -> Self {
            Self::Avx2(token)
        }
    }

    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    impl From<Avx512> for Isa {
        fn from(token: Avx512) -> Self {
            Self::Avx512(token)
        }
    }

    #[cfg(target_arch = "aarch64")]
    impl From<Neon> for Isa {
        fn from(token: Neon) -> Self {
            Self::Neon(token)
        }
    }
}

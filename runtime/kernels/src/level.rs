//! How wide the registers of this processor are. Changes speed, never a bit of a result.
#![expect(unsafe_code, reason = "calls functions compiled for features that were detected")]

use std::fmt;

/// A set of processor features that kernels are compiled for. Only [`Level::detect`] and
/// [`Level::all`] hand them out, for a processor that has the features.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Level(Features);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Features {
    /// x86-64-v3: AVX2, FMA, BMI.
    V3,
    /// x86-64-v4: AVX-512 F, BW, CD, DQ and VL as well.
    V4,
}

/// A processor that is too old.
#[derive(Debug, thiserror::Error)]
#[error(
    "this processor lacks {missing}; ebbtide needs x86-64-v3 (AVX2, FMA, BMI1, BMI2: Intel since \
     Haswell, AMD since Excavator) to give the same bits everywhere"
)]
pub struct TooOld {
    missing: &'static str,
}

/// Something that is compiled once for each level.
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, and so must everything that should use wide registers.
    fn run(self) -> Self::Output;
}

impl Level {
    /// The widest level of this processor.
    pub fn detect() -> Result<Self, TooOld> {
        let needed = [
            ("AVX2", is_x86_feature_detected!("avx2")),
            ("FMA", is_x86_feature_detected!("fma")),
            ("BMI1", is_x86_feature_detected!("bmi1")),
            ("BMI2", is_x86_feature_detected!("bmi2")),
        ];
        if let Some((missing, _)) = needed.iter().find(|(_, has)| !has) {
            return Err(TooOld { missing });
        }
        let is_v4 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        Ok(Self(if is_v4 { Features::V4 } else { Features::V3 }))
    }

    /// Every level that this processor has, narrowest first.
    pub fn all() -> Result<Vec<Self>, TooOld> {
        let widest = Self::detect()?;
        let levels = [Self(Features::V3), Self(Features::V4)];
        Ok(levels.into_iter().take_while(|it| it.0 == Features::V3 || *it == widest).collect())
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: a level is only handed out where its features were detected.
            Features::V3 => unsafe { run_v3(kernel) },
            // SAFETY: as above.
            Features::V4 => unsafe { run_v4(kernel) },
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Features::V3 => "x86-64-v3",
            Features::V4 => "x86-64-v4",
        })
    }
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2")]
fn run_v3<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

#[target_feature(enable = "avx2,fma,bmi1,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
fn run_v4<K: Kernel>(kernel: K) -> K::Output {
    kernel.run()
}

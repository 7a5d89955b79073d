//! Where the chunks of an array lie. Pure arithmetic on extents.

use std::ops::Range;

use ebbtide_core::Space;
use serde::{Deserialize, Serialize};

use crate::ArrayError;

/// Bytes that an automatic chunk has at most: large enough to make a task's overhead small beside
/// it, small enough that a worker of 1 GiB holds dozens.
const AUTO_CHUNK_BYTES: u64 = 8 << 20;

/// Chunks that an array has at most.
const CHUNKS_MAX: u32 = 100_000_000;

/// The ends of an array's chunks along each axis, slowest axis first. The last end is the extent.
/// An axis of extent 0 has one chunk of extent 0.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Grid(Vec<Vec<u64>>);

impl Grid {
    /// Chunks of these extents, the last of each axis shorter where they do not divide the shape.
    pub fn regular(shape: &[u64], chunks: &[u64]) -> Result<Self, ArrayError> {
        if shape.len() != chunks.len() || chunks.contains(&0) {
            return Err(ArrayError::Chunks { shape: shape.to_vec(), chunks: chunks.to_vec() });
        }
        // Counted before anything of that length is made.
        let counts = shape.iter().zip(chunks).map(|(extent, chunk)| extent.div_ceil(*chunk).max(1));
        let counts: Vec<u32> = counts.map(|it| u32::try_from(it).unwrap_or(u32::MAX)).collect();
        let tasks = Space::new(counts)?.tasks();
        if tasks > CHUNKS_MAX {
            return Err(ArrayError::TooManyChunks {
                shape: shape.to_vec(),
                chunks: chunks.to_vec(),
            });
        }
        let ends = |(extent, chunk): (&u64, &u64)| -> Vec<u64> {
            let count = extent.div_ceil(*chunk).max(1);
            (1..=count).map(|nth| extent.min(&nth.saturating_mul(*chunk)).to_owned()).collect()
        };
        let grid = Self(shape.iter().zip(chunks).map(ends).collect());
        grid.space()?;
        Ok(grid)
    }

    /// One chunk for everything.
    pub fn whole(shape: &[u64]) -> Result<Self, ArrayError> {
        let whole: Vec<u64> = shape.iter().map(|extent| (*extent).max(1)).collect();
        Self::regular(shape, &whole)
    }

    /// Chunks with these ends. For grids that come from other grids.
    pub(crate) fn from_ends(ends: Vec<Vec<u64>>) -> Self {
        Self(ends)
    }

    /// Chunks of a part of the array, cut where the array is: for each axis the first element, how
    /// many, and how far apart.
    pub(crate) fn sliced(&self, ranges: &[(u64, u64, u64)]) -> Self {
        let along = |(ends, (start, count, step)): (&Vec<u64>, &(u64, u64, u64))| -> Vec<u64> {
            // How many of the elements lie before an end.
            let before =
                |end: &u64| end.saturating_sub(*start).div_ceil((*step).max(1)).min(*count);
            let mut cut: Vec<u64> = ends.iter().map(before).filter(|end| *end > 0).collect();
            cut.dedup();
            if cut.last() != Some(count) {
                cut.push(*count);
            }
            cut
        };
        Self(self.0.iter().zip(ranges).map(along).collect())
    }

    /// Whether every axis has chunks, each behind the one before.
    pub(crate) fn is_ordered(&self) -> bool {
        self.0.iter().all(|ends| !ends.is_empty() && ends.windows(2).all(|pair| pair[0] < pair[1]))
    }

    /// Extent of each axis.
    pub fn shape(&self) -> Vec<u64> {
        self.0.iter().map(|ends| ends.last().copied().unwrap_or_default()).collect()
    }

    /// Ends of the chunks along an axis.
    pub fn ends(&self, axis: usize) -> &[u64] {
        &self.0[axis]
    }

    /// Number of axes.
    pub fn axes(&self) -> usize {
        self.0.len()
    }

    /// One task for each chunk.
    pub fn space(&self) -> Result<Space, ArrayError> {
        let counts = self.0.iter().map(|ends| u32::try_from(ends.len()).unwrap_or(u32::MAX));
        Ok(Space::new(counts.collect())?)
    }

    /// What the chunk at this place covers along each axis.
    pub fn chunk(&self, place: &[u32]) -> Vec<Range<u64>> {
        self.0.iter().zip(place).map(|(ends, at)| range(ends, *at as usize)).collect()
    }

    /// Extent of the longest chunk along each axis.
    pub fn largest_extents(&self) -> Vec<u64> {
        let longest = |ends: &Vec<u64>| {
            (0..ends.len()).map(|at| range(ends, at)).map(|it| it.end - it.start).max()
        };
        self.0.iter().map(|ends| longest(ends).unwrap_or_default()).collect()
    }

    /// Elements of the largest chunk.
    pub fn largest_chunk(&self) -> u64 {
        self.largest_extents().into_iter().fold(1, u64::saturating_mul)
    }
}

fn range(ends: &[u64], at: usize) -> Range<u64> {
    let start = if at == 0 { 0 } else { ends[at - 1] };
    start..ends[at]
}

/// Extents of chunks of about 8 MiB. Depends on shape and dtype alone, so that results do not
/// depend on where they are computed. The slowest axes are cut first.
pub fn auto_chunks(shape: &[u64], item_bytes: u64) -> Vec<u64> {
    let mut chunks: Vec<u64> = shape.iter().map(|extent| (*extent).max(1)).collect();
    for axis in 0..chunks.len() {
        let rest: u64 = chunks[axis + 1..].iter().product::<u64>().saturating_mul(item_bytes);
        let fitting = (AUTO_CHUNK_BYTES / rest.max(1)).max(1);
        chunks[axis] = chunks[axis].min(fitting);
        if fitting > 1 {
            break;
        }
    }
    chunks
}

/// The shape to which these broadcast.
pub fn broadcast(left: &[u64], right: &[u64]) -> Option<Vec<u64>> {
    let axes = left.len().max(right.len());
    let extent = |shape: &[u64], axis: usize| {
        (axis + shape.len()).checked_sub(axes).map_or(1, |axis| shape[axis])
    };
    (0..axes)
        .map(|axis| match (extent(left, axis), extent(right, axis)) {
            (a, b) if a == b || b == 1 => Some(a),
            (1, b) => Some(b),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Grid, auto_chunks, broadcast};

    #[test]
    fn the_last_chunk_is_shorter_where_chunks_do_not_divide() {
        let grid = Grid::regular(&[10, 4], &[4, 4]).unwrap();
        assert_eq!(grid.space().unwrap().extents(), [3, 1]);
        assert_eq!(grid.chunk(&[2, 0]), [8..10, 0..4]);
        assert_eq!(grid.largest_chunk(), 16);
    }

    #[test]
    fn an_empty_axis_has_one_empty_chunk() {
        let grid = Grid::regular(&[0], &[4]).unwrap();
        assert_eq!(grid.shape(), [0]);
        assert!(grid.chunk(&[0])[0].is_empty());
    }

    #[test]
    fn automatic_chunks_cut_the_slowest_axes_first() {
        assert_eq!(auto_chunks(&[20_000, 20_000], 8), [52, 20_000]);
        assert_eq!(auto_chunks(&[4, 1 << 30], 8), [1, 1 << 20]);
        assert_eq!(auto_chunks(&[10], 8), [10]);
        assert_eq!(auto_chunks(&[], 8), [] as [u64; 0]);
    }

    #[test]
    fn shapes_broadcast_as_the_standard_says() {
        assert_eq!(broadcast(&[3, 1], &[4]), Some(vec![3, 4]));
        assert_eq!(broadcast(&[], &[2]), Some(vec![2]));
        assert_eq!(broadcast(&[0], &[1]), Some(vec![0]));
        assert_eq!(broadcast(&[3], &[4]), None);
    }
}

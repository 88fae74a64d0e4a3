// Package bench measures this project against its peers and says whether it
// meets what was asked of it. `make bench` runs everything, and
// `make bench ROWS=regexp` the rows whose names fit.
//
// # Words
//
// A row is one figure of ours beside the same figure of a peer. A benchmark
// measures one or several rows at once: both sides do the same work on the same
// machine, in alternating runs. A family is the benchmarks of one part of the
// project, in a package of its own below this one; the command in cmd/bench
// lists the families.
//
// # How a row is made
//
// Ours and the peer run one after the other, as many times as the benchmark
// asks; who begins changes with every run, so that what drifts (a page cache
// that fills, a neighbour that wakes up) costs both alike. Each run gives a
// ratio, written so that above 1 is better for us whatever the unit. The row
// has the median of the ratios, the smallest and the largest; ours and peer are
// medians of their own, for people to read: their quotient need not be the
// ratio.
//
// Three kinds of rows have no foreign program as a peer:
//
//   - an absolute goal ("at most 5 ms"): peer_name is "goal", peer the figure
//     that was asked for, and the ratio's goal is 1;
//   - a comparison with ourselves ("flat over size"): peer_name says with what;
//   - a mean of other rows' ratios: peer_name is "mean of n rows", ours is the
//     geometric mean, and peer is 1.
//
// A goal of 0 says that none was set: the row is there to be read beside others.
//
// # What counts as success
//
// A row that could not be measured says why, has no figures, and is no success,
// be it that a peer is not installed (ErrMissing) or that something failed. Nor
// is one whose ratio is below its goal. Rows of earlier runs stay in the file
// until they are measured again or no family knows them any more.
//
// Figures are worth what the machine was worth: before each benchmark the
// processors are watched for a moment, and the row has in busy the share of
// them that others used. Above a twentieth, a warning is printed.
//
// # Adding a row, adding a family
//
// A row is a line in its family's list. A family is a package with
//
//	func Family(o bench.Options) bench.Family
//
// and a line in cmd/bench. What the benchmarks share and what takes time (a
// virtual machine) is made when the first of them opens, and given back in the
// family's Close.
//
// Ordinary Go benchmarks (`go test -bench`) stay in the packages that they are
// about: they guide development and are no evidence.
package bench

package embedded

import (
	"log/slog"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/lun"
)

// Options of an array. StateDir and Pools are required.
type Options struct {
	// StateDir holds the catalogue, intent logs and bitmaps. It is made if it
	// is not there. It should not lie in a pool: losing a disk must not lose
	// the record of what was on the other.
	StateDir string
	// Pools are directories by name, one for each disk. They are made if they
	// are not there and nothing is yet expected in them.
	Pools map[string]string

	// Limits of pools, by name.
	Limits map[string]PoolLimit

	// Logger is told what an operator should know. Default: nothing is logged.
	Logger *slog.Logger
	// OnEvent is called, one call at a time and from a goroutine of the
	// array's own, with everything that happens without having been asked for.
	OnEvent func(Event)

	// LogLimit bounds, per volume, the bytes that are copied after a crash:
	// when regions of so many bytes are marked, a write to a further one
	// waits until mirrors have been synced and marks cleared. Default: 4 GiB.
	LogLimit int64
	// LogIdle is after which time without a write a region's mark is cleared.
	// Default: 5 s.
	LogIdle time.Duration
	logUnit int64 // of tests, which want many regions in small volumes
	// retryAfter is when copying that failed is tried again; of tests. LogIdle if
	// it is not given.
	retryAfter time.Duration
	// HoldLimit bounds for how long a snapshot by reflink may hold writes: when
	// it has passed they go on, and the split fails. Splits of mirrors never
	// come near it. Default: 5 s.
	HoldLimit time.Duration
	// ResyncRate limits the copying to mirrors in all volumes together, in
	// bytes per second. 0 is no limit.
	ResyncRate int64

	// FS is the file system; tests put their own. Default: disk.OS().
	FS disk.FS
	// Now is the clock of records and events. Default: time.Now.
	Now func() time.Time
}

// PoolLimit bounds what is made in a pool, and says when room in it counts as
// low: when less than LowBytes, or less than LowPercent of its size, is free.
// That is told once, and again only after there was a tenth more.
type PoolLimit struct {
	// Limit is how many bytes raw files may take for a mirror to be made or
	// grown in the pool; 0: all that the file system has. Writes to volumes
	// that are there already are not held to it.
	Limit int64
	// LowBytes and LowPercent: 0 in both is 10 percent, and less than 0 never.
	LowBytes   int64
	LowPercent int
}

// CreateVolume asks for a volume.
type CreateVolume struct {
	// Name is 1 to 63 bytes of [a-z0-9._-], beginning with a letter or digit,
	// and not in use.
	Name string
	// Size in bytes, a positive multiple of 512, at most 16 TiB.
	Size int64
	// Pools has the name of one pool for each mirror. Two mirrors in one pool
	// are allowed, but no protection against the loss of a disk.
	Pools []string
	// Snapshots says what splits of it are made of. Default: ByMirror.
	Snapshots SnapshotPolicy
}

// VolumeInfo describes a volume at one moment.
type VolumeInfo struct {
	driver.Volume
	Created time.Time `json:"created"`
	// Replicas are its mirrors, in sync or not, without those split off.
	Replicas []MirrorInfo `json:"replicas"`
	// Wanted is how many mirrors it should have, those split off included.
	Wanted int `json:"wanted"`
	// Policy says what splits of it are made of.
	Policy SnapshotPolicy `json:"policy"`
	// Snapshots are split off and not yet back.
	Snapshots []driver.SnapshotID `json:"snapshots,omitempty"`
	// UnmirroredSince is set while fewer than two mirrors are in sync.
	UnmirroredSince time.Time `json:"unmirroredSince,omitzero"`
	// Remaining is the estimate of when all mirrors that are being copied to
	// are in sync; 0 if there are none, or nothing moves.
	Remaining time.Duration `json:"remaining,omitempty"`
	// Recovering is how many bytes remain to be compared after a crash.
	Recovering int64 `json:"recovering,omitempty"`
	// Scrub is the one under way, or the last since Open, without its list of
	// differences; nil if there was none.
	Scrub *ScrubReport `json:"scrub,omitempty"`
	// UsedBy names who has it open.
	UsedBy []string `json:"usedBy,omitempty"`
}

// MirrorInfo describes one mirror of a volume.
type MirrorInfo struct {
	ID    lun.Identity        `json:"id"`
	Pool  string              `json:"pool"`
	File  string              `json:"file"` // path of the raw file
	State driver.ReplicaState `json:"state"`
	// Reason says in one line why it is Broken, or what stalls its copying.
	Reason string `json:"reason,omitempty"`
	// Copied of ToCopy bytes are done, while it is Unsynchronized. Both are 0
	// until the copying has begun.
	Copied int64 `json:"copied,omitempty"`
	ToCopy int64 `json:"toCopy,omitempty"`
	// Rate is how many bytes a second are copied now, and Remaining how long
	// the rest takes at that; 0 if nothing moves.
	Rate      int64         `json:"rate,omitempty"`
	Remaining time.Duration `json:"remaining,omitempty"`
}

// SnapshotInfo describes a split.
type SnapshotInfo struct {
	driver.Snapshot
	VolumeName string   `json:"volumeName"`
	Pool       string   `json:"pool"`
	File       string   `json:"file"` // path of the raw file
	Reason     string   `json:"reason,omitempty"`
	UsedBy     []string `json:"usedBy,omitempty"`
	// ResyncBytes is what a resync would copy now, an upper bound.
	ResyncBytes int64 `json:"resyncBytes"`
	// ResyncTime is how long that takes at the pace of the last resync, within
	// the limit; 0 if no pace is known.
	ResyncTime time.Duration `json:"resyncTime,omitempty"`
	// UnmirroredSince is its volume's.
	UnmirroredSince time.Time `json:"unmirroredSince,omitzero"`
}

// Health of a pool at a glance.
type Health string

const (
	HealthOK       Health = "ok"
	HealthLow      Health = "low"  // less room than its PoolLimit asks for
	HealthFull     Health = "full" // no new mirror, and no growing
	HealthReadOnly Health = "read-only"
	HealthOffline  Health = "offline"
)

// PoolInfo describes a pool. Sizes are bytes.
type PoolInfo struct {
	Name string `json:"name"`
	Dir  string `json:"dir"`
	// Size and Free are what there is for us: of the file system, or of the
	// pool's limit where that is less.
	Size int64 `json:"size"`
	Free int64 `json:"free"`
	// Limit is what we may use; 0: all of the file system.
	Limit int64 `json:"limit,omitempty"`
	// Used is what our raw files in it take, and Provisioned what they would
	// take if everything in them were written: volumes are thin.
	Used        int64  `json:"used"`
	Provisioned int64  `json:"provisioned"`
	Health      Health `json:"health"`
	// Reflink says that mirrors in it can be cloned: see SnapshotPolicy.
	Reflink bool `json:"reflink"`
	// Reason says why it can't be used, and is empty if it can.
	Reason string `json:"reason,omitempty"`
}

package remote

import (
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Version of the protocol; it is the first part of every path.
const Version = "v1"

// Volume is a volume with what an operator wants to know of it.
type Volume struct {
	driver.Volume
	Created         time.Time           `json:"created,omitzero"`
	Wanted          int                 `json:"wanted"` // mirrors it should have, those split off included
	Replicas        []Mirror            `json:"replicas"`
	Snapshots       []driver.SnapshotID `json:"snapshots,omitempty"`
	UnmirroredSince time.Time           `json:"unmirroredSince,omitzero"`
	Remaining       time.Duration       `json:"remaining,omitempty"`  // until all mirrors are in sync, an estimate
	Recovering      int64               `json:"recovering,omitempty"` // bytes to compare after a crash
	// Policy says what splits of it are made of: "mirror", "reflink" or "auto".
	Policy string   `json:"policy"`
	UsedBy []string `json:"usedBy,omitempty"`
	// Scrub is the one under way, or the last since the data plane's start,
	// without its list of differences.
	Scrub *Scrub `json:"scrub,omitempty"`
	LUN   *LUN   `json:"lun,omitempty"`
}

// Scrub is a comparison of a volume's mirrors. Sizes are bytes.
type Scrub struct {
	Begun  time.Time `json:"begun"`
	Ended  time.Time `json:"ended,omitzero"` // zero while it is under way
	Repair bool      `json:"repair,omitempty"`
	// Done of Size are gone through, Compared of them were read: the rest are
	// holes in all mirrors.
	Size     int64 `json:"size"`
	Done     int64 `json:"done"`
	Compared int64 `json:"compared"`
	Mirrors  int   `json:"mirrors"`
	// Differing bytes at so many Places, of which Repaired are equal now.
	// Differences are the first places.
	Differing   int64         `json:"differing"`
	Repaired    int64         `json:"repaired"`
	Places      int64         `json:"places"`
	Differences []Difference  `json:"differences,omitempty"`
	Rate        int64         `json:"rate,omitempty"` // bytes a second now
	Remaining   time.Duration `json:"remaining,omitempty"`
	Reason      string        `json:"reason,omitempty"` // why it ended early
}

// Difference is a place at which mirrors differ.
type Difference struct {
	Off      int64        `json:"off"`
	Len      int64        `json:"len"`
	Mirrors  []MirrorHash `json:"mirrors"`
	Repaired bool         `json:"repaired,omitempty"`
}

// MirrorHash is what a mirror held there.
type MirrorHash struct {
	ID     lun.Identity `json:"id"`
	Pool   string       `json:"pool"`
	SHA256 string       `json:"sha256"` // hex
}

// Mirror is one mirror of a volume.
type Mirror struct {
	ID     lun.Identity        `json:"id"`
	Pool   string              `json:"pool"`
	File   string              `json:"file"`
	State  driver.ReplicaState `json:"state"`
	Reason string              `json:"reason,omitempty"`
	Copied int64               `json:"copied,omitempty"` // bytes …
	ToCopy int64               `json:"toCopy,omitempty"` // … of
	// Rate is bytes a second now, and Remaining how long the rest takes.
	Rate      int64         `json:"rate,omitempty"`
	Remaining time.Duration `json:"remaining,omitempty"`
}

// Snapshot is a split with what an operator wants to know of it.
type Snapshot struct {
	driver.Snapshot
	VolumeName  string   `json:"volumeName"`
	Pool        string   `json:"pool"`
	File        string   `json:"file"`
	Reason      string   `json:"reason,omitempty"`
	UsedBy      []string `json:"usedBy,omitempty"`
	ResyncBytes int64    `json:"resyncBytes"`
	// ResyncTime is how long a resync would take, 0 if no pace is known;
	// UnmirroredSince is the volume's.
	ResyncTime      time.Duration `json:"resyncTime,omitempty"`
	UnmirroredSince time.Time     `json:"unmirroredSince,omitzero"`
	LUN             *LUN          `json:"lun,omitempty"`
}

// LUN is how initiators reach a volume, snapshot or view.
type LUN struct {
	driver.Path
	Kind       string   `json:"kind"` // "volume", "snapshot", "view"
	Of         string   `json:"of"`   // the volume's or snapshot's ID, the view's name
	Initiators []string `json:"initiators"`
	// Problem says why its device can't be reached now; empty if it can.
	Problem string `json:"problem,omitempty"`
}

// Pool is a directory that holds mirrors. Sizes are bytes.
type Pool struct {
	Name string `json:"name"`
	Dir  string `json:"dir"`
	// Size and Free are of the file system, or of Limit where that is less.
	Size        int64  `json:"size"`
	Free        int64  `json:"free"`
	Limit       int64  `json:"limit,omitempty"`
	Used        int64  `json:"used"`        // by raw files
	Provisioned int64  `json:"provisioned"` // if all in them were written
	Health      string `json:"health"`      // ok, low, full, read-only, offline
	Reflink     bool   `json:"reflink"`     // volumes in it can have snapshots by reflink
	Reason      string `json:"reason,omitempty"`
}

// Accesses of an initiator to a LUN.
const (
	ReadWrite = "rw"
	ReadOnly  = "ro"
	NoAccess  = "none"
)

// Mask says that an initiator sees a LUN.
type Mask struct {
	Initiator string       `json:"initiator"` // "*": every one without a mask of its own
	LUN       uint64       `json:"lun"`
	Access    string       `json:"access"`
	Sessions  int          `json:"sessions"`         // in which it is logged in now
	Kind      string       `json:"kind"`             // "volume", "snapshot", "view"
	Of        string       `json:"of"`               // the volume's or snapshot's ID, the view's name
	Volume    string       `json:"volume,omitempty"` // name of the volume, or of the one that the snapshot is of
	Identity  lun.Identity `json:"identity"`
}

// MaskRequest asks for what one initiator may do with a volume or snapshot.
type MaskRequest struct {
	Of        string `json:"of"` // volume by name or ID, snapshot by ID
	Initiator string `json:"initiator"`
	Access    string `json:"access"`
}

// Initiator may log in. Secrets go in and never come out.
type Initiator struct {
	IQN        string   `json:"iqn"`
	User       string   `json:"user,omitempty"` // CHAP; empty: none
	MutualUser string   `json:"mutualUser,omitempty"`
	Sessions   int      `json:"sessions"`
	LUNs       []uint64 `json:"luns,omitempty"`

	// Only in requests: the secrets, or the absolute paths of files that hold
	// them. Files are read anew at each start of the data plane.
	Secret           string `json:"secret,omitempty"`
	SecretFile       string `json:"secretFile,omitempty"`
	MutualSecret     string `json:"mutualSecret,omitempty"`
	MutualSecretFile string `json:"mutualSecretFile,omitempty"`
}

// Publication is a recovered view to be served as a LUN.
type Publication struct {
	Name       string       `json:"name"`   // its name from now on
	Socket     string       `json:"socket"` // absolute path of a unix socket that speaks NBD
	Export     string       `json:"export"`
	Identity   lun.Identity `json:"identity"`
	Initiators []string     `json:"initiators"`
	Writable   bool         `json:"writable,omitempty"`
}

// Status is the data plane at a glance.
type Status struct {
	IQN     string   `json:"iqn"`
	Portals []string `json:"portals"` // as initiators are told
	// Listening are the portals that iSCSI is served on.
	Listening []Portal  `json:"listening"`
	Started   time.Time `json:"started"`
	PID       int       `json:"pid"`
	Sessions  []Session `json:"sessions"`
	LUNs      []LUN     `json:"luns"`
	Pools     []Pool    `json:"pools"`
	// MaxLUNs is how many LUNs there can be; 0 if the data plane does not tell.
	MaxLUNs int `json:"maxLUNs,omitempty"`
	// Problems are what an operator should look at, one line each. Empty is
	// healthy.
	Problems []string `json:"problems"`
}

// Portal is an address that iSCSI is served on, and its portal group.
type Portal struct {
	Address string `json:"address"`
	Group   uint16 `json:"group"`
}

// Session is an initiator that is logged in.
type Session struct {
	Initiator string    `json:"initiator"`
	Target    string    `json:"target,omitempty"` // empty: discovery
	Remote    string    `json:"remote"`
	Since     time.Time `json:"since"`
}

// Event is something that happened without having been asked for. Seq goes on
// over restarts.
type Event struct {
	Seq      uint64    `json:"seq"`
	At       time.Time `json:"at"`
	Kind     string    `json:"kind"`
	Severity string    `json:"severity"` // info, warning, error
	Volume   string    `json:"volume,omitempty"`
	Pool     string    `json:"pool,omitempty"`
	Text     string    `json:"text"`
}

// EventQuery says which events are asked for; the zero value is all.
type EventQuery struct {
	After    uint64    // only those of a higher Seq
	Since    time.Time // only those of this time or later
	Volume   string    // only those of the volume with this ID or name
	Severity string    // only those that matter at least so much
}

// Fault is the body of every answer that is no success.
type Fault struct {
	Error string `json:"error"`
	Kind  string `json:"kind"`
}

// CreateVolumeRequest asks for a new volume, with a mirror in each pool.
type CreateVolumeRequest struct {
	Name  string   `json:"name"`
	Size  int64    `json:"size"` // bytes
	Pools []string `json:"pools"`
	// Snapshots says what splits of it are made of; empty is "mirror".
	Snapshots string `json:"snapshots,omitempty"`
}

// PolicyRequest asks for splits to be made otherwise.
type PolicyRequest struct {
	Snapshots string `json:"snapshots"`
}

// ResizeRequest asks for a larger volume.
type ResizeRequest struct {
	Size int64 `json:"size"` // bytes
}

// ExposeVolumeRequest asks for a LUN.
type ExposeVolumeRequest struct {
	Initiators []string `json:"initiators"`
	ReadOnly   bool     `json:"readOnly,omitempty"`
}

// AddMirrorRequest asks for one more mirror.
type AddMirrorRequest struct {
	Pool string `json:"pool"`
}

// PrepareRequest asks for mirrors in sync.
type PrepareRequest struct {
	Volumes []driver.VolumeID     `json:"volumes"`
	Options driver.PrepareOptions `json:"options"`
}

// SplitRequest asks for snapshots.
type SplitRequest struct {
	Tag     driver.Tag        `json:"tag"`
	Volumes []driver.VolumeID `json:"volumes"`
	Group   bool              `json:"group"` // all at one instant; otherwise one volume
}

// ArmRequest asks for a split that is ready to be committed.
type ArmRequest struct {
	Tag        driver.Tag        `json:"tag"`
	Volumes    []driver.VolumeID `json:"volumes"`
	AbortAfter time.Duration     `json:"abortAfter"` // nanoseconds
}

// TagRequest names what is armed.
type TagRequest struct {
	Tag driver.Tag `json:"tag"`
}

// BreakRequest asks for a snapshot to become a volume.
type BreakRequest struct {
	Name string `json:"name"`
}

// ChangesRequest asks what changed between two points of a volume; an empty ID
// is now.
type ChangesRequest struct {
	From driver.SnapshotID `json:"from"`
	To   driver.SnapshotID `json:"to"`
}

// ScrubRequest asks for a scrub.
type ScrubRequest struct {
	// Repair copies what the majority of at least three mirrors holds.
	Repair bool `json:"repair,omitempty"`
}

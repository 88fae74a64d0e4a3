// Package driver is what an array provider implements.
//
// Callers do not use it directly: they hold an arrays.Array, which validates,
// traces and wraps errors around a Driver, and makes every type assertion.
//
// # Words
//
// A volume is a block device of the array that production writes to. It has
// mirrors (plexes): copies that the array keeps equal. A split takes one
// synchronised mirror off the volume at one instant; what comes off is a
// snapshot, with an identity of its own. Arrays without mirrors make a
// snapshot by a call of their own; both are a Snapshot here, told apart by its
// Method. A LUN is a snapshot or volume that an initiator can see.
//
// # A walk
//
// The engine resolves each disk of a VM to a volume (Resolve), has the array
// bring mirrors into sync while nothing is held (Prepare: minutes), and then
// splits all volumes of a set at one instant under the set's tag (SplitGroup,
// or Split where there is one volume). It exposes the snapshot to the host
// that recovers and reads it (Expose), and in the end gives it back (Resync)
// or drops it (Delete). If a reply is lost, Lookup by the tag tells what the
// array did.
//
// # Adding a provider
//
// Implement Driver and those of the options below that the array can do; pass
// arraytest.Run; name the provider once in plugin/assemble. Six methods are
// required; an option that is missing costs what its comment says.
package driver

import (
	"context"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// Tag labels what one snapshot set does on an array, so that it is found again
// after a lost reply or a crash. It is made by the engine, at most 63 bytes of
// [a-z0-9-], and never used for another set.
type Tag string

// VolumeID names a volume on one array, in the array's own words.
type VolumeID string

// SnapshotID names a snapshot on one array, in the array's own words.
type SnapshotID string

// Disk is what a hypervisor knows of the disk it gave to a VM. Fields that it
// does not know are empty. Names alone identify nothing: a Driver answers only
// on an identity or on a path that it serves itself.
type Disk struct {
	Identity lun.Identity `json:"identity,omitzero"` // Cleave's own volumes
	NAA      string       `json:"naa,omitempty"`     // "naa.6001405…", lower case
	Serial   string       `json:"serial,omitempty"`  // unit serial number
	IQN      string       `json:"iqn,omitempty"`     // iSCSI target …
	LUN      uint64       `json:"lun,omitempty"`     // … and LUN number
	Portal   string       `json:"portal,omitempty"`  // host:port
	Path     string       `json:"path,omitempty"`    // block device or file on the array's own host
}

// Driver is required of every provider. All methods may be called at once from
// several goroutines, repeat safely (a second call with the same arguments has
// the same outcome), and obey ctx: they return soon after it ends, with the
// outcome unknown if a change was under way.
type Driver interface {
	// Resolve answers which volume the disk is, or an error of kind NotMine.
	// Two volumes that claim the same disk are an error of kind Ambiguous.
	Resolve(ctx context.Context, d Disk) (Volume, error)

	// Prepare brings the volumes to where a split can follow at once, and
	// returns when they are there: mirrors Synchronized, room for what a
	// snapshot needs. It may take long; nothing is held. It is refused with
	// kind NeedsConsent where a split would leave production with fewer than
	// two copies and o does not allow it.
	Prepare(ctx context.Context, vs []VolumeID, o PrepareOptions) error

	// Split takes a synchronised mirror off v (or makes the array's own
	// snapshot) and returns it. Writes acknowledged before it starts are in
	// the snapshot; none issued after it returns is. The snapshot is durable
	// when Split returns, and nobody sees it as a LUN yet.
	// Called again with the same tag it returns the same snapshot.
	// If the array may have acted without answering, the error's kind is
	// OutcomeUnknown, and the caller asks Lookup before it tries again.
	Split(ctx context.Context, tag Tag, v VolumeID) (Snapshot, error)

	// Lookup returns every snapshot that carries the tag, whatever its state,
	// or none. It asks the array, not a memory of the provider's own.
	Lookup(ctx context.Context, tag Tag) ([]Snapshot, error)

	// Delete ends a snapshot. It must not be exposed (kind Busy). Deleting what
	// is not there is success. A deleted mirror's space is kept for the volume
	// where the array's policy says so.
	Delete(ctx context.Context, s SnapshotID) error

	// Kind classifies an error that one of the driver's methods returned.
	Kind(err error) Kind
}

// GroupSplitter splits several volumes at one instant: a write that was issued
// after another was acknowledged is never in the group's snapshots without the
// other. It is all or nothing. Without it, a guest whose volumes lie on several
// of the array's volumes can't be snapshot as a whole.
type GroupSplitter interface {
	SplitGroup(ctx context.Context, tag Tag, vs []VolumeID) ([]Snapshot, error)
}

// Armer splits in two steps, so that a set over several arrays can have all of
// them ready before the first one splits. Arm does everything that takes time;
// what remains for Commit is the instant itself. An armed tag keeps its volumes
// from being administered; writes to them go on.
//
// Arm again with the same tag and volumes extends the deadline. What is neither
// committed nor aborted is aborted by the array itself once abortAfter has
// passed, also after a crash of either side. Commit is SplitGroup for what was
// armed, with the same promises; for a tag that is not armed (any more) it is an
// error of kind NotArmed and nothing has happened, unless the tag is split
// already: then it returns that split again. Abort of what is not armed is
// success; of what was committed it is an error of kind InvalidRequest.
// Without it, a set over several arrays splits one after the other.
type Armer interface {
	Arm(ctx context.Context, tag Tag, vs []VolumeID, abortAfter time.Duration) error
	Commit(ctx context.Context, tag Tag) ([]Snapshot, error)
	Abort(ctx context.Context, tag Tag) error
}

// Exposer makes a snapshot visible as a LUN. The mask exists before the LUN
// does: only the initiators named ever see it. Exposing again to the same
// initiators returns the same Path; Writable may be raised on an exposed
// snapshot, on the same LUN. Without it, recovery needs an Opener.
type Exposer interface {
	Expose(ctx context.Context, s SnapshotID, o ExposeOptions) (Path, error)
	// Unexpose takes the LUN away; commands under way end first or fail. What
	// is not exposed is success.
	Unexpose(ctx context.Context, s SnapshotID) error
}

// Opener opens a snapshot for reading without a transport, on the array's own
// host. The caller closes the device if it is an io.Closer. Without it,
// recovery reads through the LUN.
type Opener interface {
	Open(ctx context.Context, s SnapshotID) (lun.Device, error)
}

// Rewriter opens a snapshot for writing without a transport, for a caller who is
// alone with it: kind Busy while it is exposed or open to anybody, and until the
// device is closed it is Busy to everybody else. It waits, until ctx ends, for
// somebody who had it open in this way and is about to be gone: a caller that
// crashed finds its own handle let go. The first write makes the snapshot
// Skewed; what is written is in it for whoever opens or exposes it later, and is
// among its Changes. The device is an io.Closer, and does not outlive its
// process. Without it, nothing is recovered in place.
type Rewriter interface {
	Rewrite(ctx context.Context, s SnapshotID) (lun.Device, error)
}

// Resyncer puts a split mirror back under its volume, copying only what changed
// on either side. It returns when the copying has been started; Prepare waits
// for its end. Without it, a split is deleted and a new mirror is filled.
type Resyncer interface {
	Resync(ctx context.Context, s SnapshotID) error
}

// Reverter puts a volume back to what a snapshot of it holds. It is refused with
// kind Busy while the volume or the snapshot is in use. What the volume held
// before is kept as a snapshot, the safe point, which is returned: it exists
// before the first byte of the volume changes. The volume may be used when
// Revert returns; other mirrors are brought into sync in the background, and
// Prepare waits for that. Called again with the same snapshot it returns the
// same safe point. The snapshot may be used up by it (a mirror that goes back).
// Without it, going back is a copy by the host.
type Reverter interface {
	Revert(ctx context.Context, s SnapshotID) (safe Snapshot, err error)
}

// Breaker ends the management of a snapshot: it becomes an ordinary volume of
// the name given, with the snapshot's content and identity, for good. It is
// refused with kind Busy while the snapshot is exposed. Called again with the
// same arguments it returns the same volume. Without it, a snapshot can only be
// copied.
type Breaker interface {
	Break(ctx context.Context, s SnapshotID, name string) (Volume, error)
}

// ChangeTracker tells which regions differ between two points of a volume. A
// point is one of its snapshots, or the volume as it is now where the ID is
// empty. What is reported covers every byte that differs, and may cover bytes
// that don't: Granularity says how coarse it is. Regions are reported in order
// and don't overlap. Kind NotSupported says that the array doesn't know for
// these two points: everything may differ. Without it, changes are found by
// reading both.
type ChangeTracker interface {
	Changes(ctx context.Context, v VolumeID, from, to SnapshotID) (Changes, error)
}

// Presenter tells who has a volume before them: initiators by their IQNs, hosts by
// the array's names for them, "*" for everybody. A copy of the volume has its
// identity in every byte, and a host that sees both takes one for the other. Kind
// NotSupported says that it is not known for this volume. Without it, only what
// hosts say of their own logins is known.
type Presenter interface {
	PresentedTo(ctx context.Context, v VolumeID) ([]string, error)
}

// Changes are the regions that may differ between two points.
type Changes struct {
	Granularity int64        `json:"granularity"` // bytes
	Regions     []lun.Extent `json:"regions"`     // Hole is not set
}

// Describer tells what the array can do, for plans, doctor and the README's
// matrix. Without it, only what the interfaces show is claimed.
type Describer interface {
	Describe(ctx context.Context) (Description, error)
}

// PrepareOptions says what the operator has allowed.
type PrepareOptions struct {
	// Tag of the set that will split; what Prepare reserves carries it.
	Tag Tag `json:"tag"`
	// AllowUnmirrored consents to a split that leaves production with one copy
	// until the resync.
	AllowUnmirrored bool `json:"allowUnmirrored,omitempty"`
}

// ExposeOptions says to whom and how.
type ExposeOptions struct {
	Initiators []string `json:"initiators"`         // IQNs; at least one
	Writable   bool     `json:"writable,omitempty"` // default: read-only
}

// Path is how an initiator reaches a LUN.
type Path struct {
	Portals  []string     `json:"portals"` // host:port
	IQN      string       `json:"iqn"`
	LUN      uint64       `json:"lun"`
	Identity lun.Identity `json:"identity,omitzero"` // to be checked in page 0x83 before a byte is trusted
	NAA      string       `json:"naa,omitempty"`
	Writable bool         `json:"writable"`
	// CHAP is what the target asks initiators for, where the array made that up.
	// It stays in the process that asked for the path.
	CHAP *CHAP `json:"-"`
}

// Volume is a device that production writes to.
type Volume struct {
	ID       VolumeID     `json:"id"`
	Name     string       `json:"name"`
	Size     int64        `json:"size"` // bytes
	Identity lun.Identity `json:"identity,omitzero"`
	State    ReplicaState `json:"state"`
	Mirrors  int          `json:"mirrors"` // in sync now; 1 for an array that does not say
	// FullCopy says that what a split takes does not come back: the volume needs a
	// whole new mirror before the next one.
	FullCopy bool `json:"fullCopy,omitempty"`
}

// Method is how a snapshot came to be.
type Method string

const (
	MirrorSplit   Method = "mirror-split"   // a mirror was taken off (claim 8 i)
	ArraySnapshot Method = "array-snapshot" // the array's own procedure (claim 8 ii)
)

// Snapshot is what came off a volume.
type Snapshot struct {
	ID       SnapshotID   `json:"id"`
	Tag      Tag          `json:"tag"`
	Volume   VolumeID     `json:"volume"`
	Size     int64        `json:"size"`
	Identity lun.Identity `json:"identity,omitzero"`
	NAA      string       `json:"naa,omitempty"`
	Method   Method       `json:"method"`
	State    ReplicaState `json:"state"`
	// Group is the same for snapshots made at one instant with write order
	// kept, and empty where the array guarantees no such thing.
	Group string `json:"group,omitempty"`
	// At is the instant by the array's clock; Held is for how long it held
	// writes, 0 if it did not say.
	At   time.Time     `json:"at"`
	Held time.Duration `json:"held,omitempty"`
}

// ReplicaState follows SMI-S (CIM_ReplicationSettingData, CopyState).
type ReplicaState string

const (
	Initialized    ReplicaState = "Initialized"
	Unsynchronized ReplicaState = "Unsynchronized"
	Synchronized   ReplicaState = "Synchronized"
	Split          ReplicaState = "Split"
	Skewed         ReplicaState = "Skewed" // a split that was written to
	Broken         ReplicaState = "Broken"
	Suspended      ReplicaState = "Suspended"
	Invalid        ReplicaState = "Invalid"
)

// Description is a provider's account of an array.
type Description struct {
	Provider     string `json:"provider"`
	Version      string `json:"version,omitempty"`
	MirrorSplit  bool   `json:"mirrorSplit"`
	Snapshot     bool   `json:"snapshot"`
	GroupOrdered bool   `json:"groupOrdered"` // groups keep write order
	Resync       bool   `json:"resync"`
	Rewrite      bool   `json:"rewrite"`
	Arm          bool   `json:"arm"`
	Revert       bool   `json:"revert"`
	Break        bool   `json:"break"`
	Changes      bool   `json:"changes"`
	MaxGroup     int    `json:"maxGroup,omitempty"` // 0: no limit known
}

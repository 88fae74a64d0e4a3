package orchestrator

import (
	"context"
	"errors"
	"time"
)

// SetID names a snapshot set: "set-" and 16 hexadecimal digits.
type SetID string

// State is where a snapshot set stands; design section 3 tells the story.
type State string

const (
	StatePlanned   State = "planned"
	StatePrepared  State = "prepared"
	StateGuestDone State = "guest-done"
	StateSplit     State = "split"
	StateVerified  State = "verified"
	StateRecovered State = "recovered"
	StateReady     State = "ready"
	StateReleasing State = "releasing" // what it holds is being given back, as asked
	StateReleased  State = "released"
	StateReverting State = "reverting" // its volumes are being put back to it
	StateBreaking  State = "breaking"  // its splits are being made volumes
	// StateRecovering: what guests snapshot is being put back in the splits
	// themselves; Split.Recovery says how far.
	StateRecovering State = "recovering"
	StateRetrying   State = "retrying" // a VM changed its state: undone, to be tried again
	StateAborting   State = "aborting" // being undone
	StateAborted    State = "aborted"
)

// Code classifies why a set was aborted.
type Code string

const (
	CodeFailed       Code = "failed"        // none of the others
	CodeLevel        Code = "level"         // a VM can't reach what was asked of it
	CodeBusy         Code = "busy"          // something is in use
	CodeConsent      Code = "consent"       // possible, but the operator has to allow it
	CodeTimeout      Code = "timeout"       // a limit passed
	CodeUnreachable  Code = "unreachable"   // an array, hypervisor or guest did not answer
	CodeNotPermitted Code = "not-permitted" // credentials or role refuse it
	CodeReleased     Code = "released"      // somebody gave it back while it was under way
	CodeRestarted    Code = "restarted"     // the control plane stopped in the middle
)

// Final reports whether nothing more will happen to a set in this state.
func (s State) Final() bool { return s == StateReleased || s == StateAborted }

// Request asks for a snapshot set.
type Request struct {
	VMs []string `json:"vms"`
	// Level is the least that will do. A VM that can't reach it fails the set
	// before any guest is touched.
	Level Level `json:"level"`
	// AllowUnmirrored consents to production running on one copy meanwhile.
	AllowUnmirrored bool `json:"allowUnmirrored,omitempty"`
	// Initiators, and hosts by their names in the configuration, see the recovered
	// LUNs. None: they are recovered and kept, and seen by nobody until snapshot
	// expose.
	Initiators []string `json:"initiators,omitempty"`
	// ExposeDirty exposes the dirty splits as well, read-only.
	ExposeDirty bool `json:"exposeDirty,omitempty"`
	// NewIdentity has Initiators see LUNs whose identifiers are their own; see
	// ExposeRequest.
	NewIdentity bool `json:"newIdentity,omitempty"`
	// GuestLimit bounds the guest step; the guest keeps it by itself. 0: 2 min.
	GuestLimit time.Duration `json:"guestLimit,omitempty"`
	// PauseLimit bounds a pause; a guard process keeps it. 0: 10 s.
	PauseLimit time.Duration `json:"pauseLimit,omitempty"`
	// Attempts bounds how often the set is tried again after a VM changed its
	// state in the middle. 0: 3.
	Attempts int `json:"attempts,omitempty"`
	// Lease ends the set by itself when nobody released it. 0: 24 h.
	Lease time.Duration `json:"lease,omitempty"`
	// DryRun plans and goes no further.
	DryRun bool `json:"dryRun,omitempty"`
	// DeleteSplits drops the splits at release instead of resyncing them.
	DeleteSplits bool `json:"deleteSplits,omitempty"`
	// Note is the operator's own words, kept in the document.
	Note string `json:"note,omitempty"`
}

// Set is the document of a snapshot set: what was asked, what was done, what
// was reached and the evidence for it. It is complete at every moment.
type Set struct {
	Version int       `json:"version"` // of this document: 1
	ID      SetID     `json:"id"`
	State   State     `json:"state"`
	Reason  string    `json:"reason,omitempty"` // why it was aborted
	Code    Code      `json:"code,omitempty"`   // the same, for programs
	Request Request   `json:"request"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	Attempt int       `json:"attempt"`

	VMs     []VMResult `json:"vms"`
	Splits  []Split    `json:"splits,omitempty"`
	LUNs    []LUN      `json:"luns,omitempty"`
	Steps   []Step     `json:"steps,omitempty"` // the timeline
	Expires time.Time  `json:"expires,omitzero"`
	// InPlace is what Recover was last asked for, nil if it never was.
	InPlace *RecoverRequest `json:"inPlace,omitempty"`
	TraceID string          `json:"traceId,omitempty"`
}

// VMResult is what became of one VM.
type VMResult struct {
	Name    string  `json:"name"`
	Verdict Verdict `json:"verdict"`
	Asked   Level   `json:"asked"`
	Reached Level   `json:"reached"`
	// Why Reached is less than the best there is ("" if it is not).
	Why      string         `json:"why,omitempty"`
	Evidence []string       `json:"evidence,omitempty"`
	Volumes  []VolumeResult `json:"volumes,omitempty"`
	Writers  []WriterResult `json:"writers,omitempty"`
	Pause    *Pause         `json:"pause,omitempty"`
	Config   string         `json:"config,omitempty"`
	Disks    []DiskResult   `json:"disks"`
}

// DiskResult ties a virtual disk to the volume and split under it.
type DiskResult struct {
	Device string `json:"device"`
	Array  string `json:"array"`
	Volume string `json:"volume"`
	Split  string `json:"split,omitempty"`
	// Initiator is as which its hypervisor reaches the volume; "" if that is not
	// known.
	Initiator string `json:"initiator,omitempty"`
	// Also are further volumes that it lies on: a logical volume's of the host.
	Also []DiskPart `json:"also,omitempty"`
	// FullCopy says that one of them needs a whole new mirror after the split.
	FullCopy bool `json:"fullCopy,omitempty"`
	// Host says where on these it lies, if they are a host's volumes; nil where the
	// volume is the disk.
	Host *HostPlace `json:"host,omitempty"`
}

// DiskPart is one of several volumes that a disk lies on.
type DiskPart struct {
	Array  string `json:"array"`
	Volume string `json:"volume"`
	Split  string `json:"split,omitempty"`
}

// HostPlace is a virtual disk on a host's volume: a file in its file system, or a
// logical volume.
type HostPlace struct {
	Volume string `json:"volume"`          // in the words of lun inspect: "disk", "p1", the UUID of a logical volume
	Path   string `json:"path,omitempty"`  // of the file, from the root of that volume's file system
	FS     string `json:"fs,omitempty"`    // type of that file system
	Mount  string `json:"mount,omitempty"` // where the host has it
	Format string `json:"format"`          // "raw", "qcow2", "vhd", "vhdx", "vmdk"
	Cache  string `json:"cache,omitempty"` // the hypervisor's mode
	// Container is what the split held of it.
	Container *Container `json:"container,omitempty"`
}

// Container is the virtual disk's container in a split.
type Container struct {
	Size int64 `json:"size,omitempty"` // of the disk that the guest sees, in bytes
	// Dirty says that it was in use. Its content is right all the same.
	Dirty    bool     `json:"dirty,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	Problem  string   `json:"problem,omitempty"` // why it can't be read; "" if it can
}

// HostedDisk is a virtual disk that lies on a split of a host's volume. VMs that
// are no part of the set have theirs there, too.
type HostedDisk struct {
	VM     string    `json:"vm"`
	Device string    `json:"device"`
	Host   HostPlace `json:"host"`
	// Reached by the VM; crash at most if it is no part of the set, and Why says so.
	Reached Level  `json:"reached"`
	Why     string `json:"why,omitempty"`
}

// VolumeResult is one guest volume: its own snapshot, and what the split held.
type VolumeResult struct {
	Name     string    `json:"name"`
	UUID     string    `json:"uuid"`
	Snapshot string    `json:"snapshot,omitempty"` // UUID of the in-guest snapshot
	Kind     string    `json:"kind,omitempty"`
	Mount    string    `json:"mount,omitempty"`
	Began    time.Time `json:"began,omitzero"` // guest clock
	Ended    time.Time `json:"ended,omitzero"`
	Found    bool      `json:"found"` // found by its UUID in the split, and valid
	Reached  Level     `json:"reached"`
	Why      string    `json:"why,omitempty"`
	// Mode is how it was put back in place: "overwrite" or "delete" (its dirty
	// thin device); Discarded are other snapshots of it that went with that.
	Mode      string   `json:"mode,omitempty"`
	Discarded []string `json:"discarded,omitempty"`
}

// WriterResult is an application writer's part.
type WriterResult struct {
	App     string   `json:"app"`
	Version string   `json:"version,omitempty"`
	State   string   `json:"state"`
	Method  string   `json:"method,omitempty"`
	Volumes []string `json:"volumes,omitempty"`
	Include []string `json:"include,omitempty"`
	Exclude []string `json:"exclude,omitempty"`
	Restore string   `json:"restore,omitempty"`
	Label   string   `json:"label,omitempty"` // to be kept with the backup
	// Files belong beside its data when it is restored, by name.
	Files map[string]string `json:"files,omitempty"`
	Error string            `json:"error,omitempty"`
}

// Split is one array snapshot of the set.
type Split struct {
	Array    string        `json:"array"`
	ID       string        `json:"id"`
	Volume   string        `json:"volume"`
	Size     int64         `json:"size"`
	NAA      string        `json:"naa,omitempty"`
	UUID     string        `json:"uuid,omitempty"`
	Method   string        `json:"method"`
	State    string        `json:"state"`
	Group    string        `json:"group,omitempty"`
	At       time.Time     `json:"at"`
	Held     time.Duration `json:"held,omitempty"`
	Reached  Level         `json:"reached"` // only as good as its worst disk
	Recovery Recovery      `json:"recovery,omitempty"`
	// Disks are those that lie on a host's volume; none where the volume is a disk.
	Disks []HostedDisk `json:"disks,omitempty"`
	// Rewritten is where a recovery in place has changed the split, or may have
	// once it has begun: in order, apart, and few, so that it may cover more.
	Rewritten []Region `json:"rewritten,omitempty"`
	// SafePoint is the snapshot that keeps what Volume held before it was put
	// back to this split; the set does not hold it. Became is the volume that
	// the split was made. Both "" otherwise.
	SafePoint string `json:"safePoint,omitempty"`
	Became    string `json:"became,omitempty"`
}

// Recovery is how the clean content of a split is to be had.
type Recovery string

const (
	NotRecovered      Recovery = ""           // none needed, or none made
	RecoveredAsView   Recovery = "view"       // as a view; the split is as it came off
	RecoveringInPlace Recovery = "recovering" // the split itself is being written; not at its end
	RecoveredInPlace  Recovery = "in-place"   // the split itself is clean
)

// LUN is how a backup host reaches a copy.
type LUN struct {
	Name     string   `json:"name"`
	Split    string   `json:"split"`
	Clean    bool     `json:"clean"` // the recovered view, or the split recovered in place; false: the dirty split itself
	Portals  []string `json:"portals"`
	IQN      string   `json:"iqn"`
	LUN      uint64   `json:"lun"`
	NAA      string   `json:"naa,omitempty"`
	UUID     string   `json:"uuid,omitempty"`
	Writable bool     `json:"writable"`
	// Hosted says that it is the content of a virtual disk that lies on the split
	// of a host's volume, and not that split itself.
	Hosted bool `json:"hosted,omitempty"`
	// NewIdentity says that its partition table, PVs and VGs have identifiers that
	// the original has not.
	NewIdentity bool `json:"newIdentity,omitempty"`
	// Socket serves the same content as NBD on this host, for readers that
	// need no iSCSI ("" if there is none).
	Socket string `json:"socket,omitempty"`
	Export string `json:"export,omitempty"`
	// Devices are the block devices that this host has made of it, when the
	// document was asked for.
	Devices []string `json:"devices,omitempty"`
}

// ExposeRequest says to whom LUNs become visible, and which.
type ExposeRequest struct {
	// Initiators are IQNs, or names of hosts in the configuration.
	Initiators []string `json:"initiators"`
	Writable   bool     `json:"writable,omitempty"`
	Dirty      bool     `json:"dirty,omitempty"` // the dirty splits too; these stay read-only
	// NewIdentity exposes further LUNs in place of the others: the same disks, with
	// identifiers of their own in partition tables and LVM. Initiators that see an
	// original get no others.
	NewIdentity bool `json:"newIdentity,omitempty"`
}

// RecoverRequest says how a set's splits are to be recovered in place.
type RecoverRequest struct {
	// DiscardOthers agrees that other snapshots of the recovered volumes, whose
	// content depends on what is overwritten, are removed.
	DiscardOthers bool `json:"discardOthers,omitempty"`
}

// Diff is where the disks of a set, as it presents them (clean where they were
// recovered), may differ from another set's, or from what their volumes hold now.
type Diff struct {
	Version int        `json:"version"` // of this document: 1
	From    SetID      `json:"from"`
	To      SetID      `json:"to,omitempty"` // "": now
	Disks   []DiskDiff `json:"disks"`
}

// DiskDiff is one volume's part of a Diff. Regions are in order and don't
// overlap. They cover every byte that differs, in units of Granularity bytes,
// and may cover some that don't; Total is their sum. Of a host's volume, on which
// disks lie, it is about the volume as it came off, and VM and Device are "".
type DiskDiff struct {
	VM          string   `json:"vm"`
	Device      string   `json:"device"`
	Array       string   `json:"array"`
	Volume      string   `json:"volume"`
	Granularity int64    `json:"granularity"`
	Total       int64    `json:"total"`
	Regions     []Region `json:"regions"`
}

// Region is a range of a disk, in bytes.
type Region struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Step is one line of the timeline.
type Step struct {
	Name  string    `json:"name"`
	VM    string    `json:"vm,omitempty"`
	Clock string    `json:"clock"` // "host" or "guest"
	From  time.Time `json:"from"`
	To    time.Time `json:"to,omitzero"`
	Error string    `json:"error,omitempty"`
}

// Event tells a watcher that a set moved on.
type Event struct {
	Set   SetID     `json:"set"`
	At    time.Time `json:"at"`
	State State     `json:"state"`
	Text  string    `json:"text"` // one line for a person
}

// Service is what every door (command line, API, hooks) offers. All methods may
// be called at once.
type Service interface {
	// VMs lists every VM of every host writer.
	VMs(ctx context.Context) ([]VM, error)
	// Explain classifies one VM, or all where name is "".
	Explain(ctx context.Context, name string) ([]Verdict, error)
	// Create starts a set and returns as soon as it is journaled. With
	// Request.DryRun it returns the plan and nothing is kept.
	Create(ctx context.Context, r Request) (Set, error)
	// Get returns a set's document.
	Get(ctx context.Context, id SetID) (Set, error)
	// List returns all sets, newest first.
	List(ctx context.Context) ([]Set, error)
	// Wait returns when the set is ready, released or aborted; watch, if not
	// nil, is called for each event from the set's beginning.
	Wait(ctx context.Context, id SetID, watch func(Event)) (Set, error)
	// Expose lets initiators see the set's LUNs, or raises them to writable on
	// the same LUN numbers. The set must be ready. It is ErrUsage where one is known
	// to see an original of what it would get, unless a new identity is asked for.
	Expose(ctx context.Context, id SetID, r ExposeRequest) (Set, error)
	// Unexpose takes all LUNs of the set away; the copies stay. Block devices that
	// this host has made of them are detached first. While one is in use Unexpose is
	// refused with ErrBusy, says by whom, and the LUNs stay; so are Release of a set
	// that is ready, Revert and Break.
	Unexpose(ctx context.Context, id SetID) (Set, error)
	// Release gives back all that a set holds: LUNs, views, splits, in-guest
	// snapshots. On a set under way it aborts it.
	Release(ctx context.Context, id SetID) (Set, error)
	// Revert puts all volumes of a ready set back to what its splits hold. It is
	// refused with ErrBusy, and nothing is touched, while a VM of the set is not
	// off. LUNs and views end; the splits are used up, and for each volume a
	// safe point (Split.SafePoint) is kept, which is not the set's. It returns
	// when the set is released. After an error with the set reverting, the
	// volumes whose splits have a SafePoint are put back and the others are
	// not: Revert asked again goes on, as the control plane's next start does;
	// Release leaves it at that.
	Revert(ctx context.Context, id SetID) (Set, error)
	// Break makes all splits of a ready set volumes of their own (Split.Became),
	// for good, in the same way: LUNs and views end, and a set that is breaking
	// after an error goes on when asked again.
	Break(ctx context.Context, id SetID) (Set, error)
	// Recover puts what the guests snapshot back in the splits of a ready set
	// themselves, which are clean and Skewed then: LUNs of them can be written to,
	// and Revert and Break mean the clean content. It is refused with ErrBusy while
	// a LUN of the set is exposed or read through its socket, and with ErrUsage where an array can't have its
	// splits written to, no guest has made a snapshot, or other snapshots would go
	// without consent; the set is ready then, as it was. The view of a VM ends
	// before its splits are written. It returns when the set is ready again. After
	// an error with the set recovering, Split.Recovery says which splits are
	// clean, not begun, or in between: Recover asked again goes on, as the control
	// plane's next start does; Release leaves it at that.
	Recover(ctx context.Context, id SetID, r RecoverRequest) (Set, error)
	// Diff tells which regions may differ between a ready set and what its
	// volumes hold now, or between the set from, if it is not "", and this one:
	// both have to be ready, and over the same volumes. It is about what the sets
	// present: what recovery rewrote, as a view or in place, and what initiators
	// wrote to the clean LUNs, is in it. A copy of the older set's clean LUNs
	// becomes one of the newer set's by these regions alone.
	Diff(ctx context.Context, id, from SetID) (Diff, error)
}

// Errors of a Service, compared with errors.Is. The command line turns them
// into its exit codes.
var (
	ErrNotFound     = errors.New("not found")
	ErrBusy         = errors.New("busy")
	ErrUsage        = errors.New("request can't be taken")
	ErrLevel        = errors.New("level not reached")
	ErrTimeout      = errors.New("timed out")
	ErrUnreachable  = errors.New("unreachable")
	ErrNotPermitted = errors.New("not permitted")
)

package cli

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/orchestrator"
)

// Parts are what the commands drive. A part that is nil takes the commands that
// need it away.
type Parts struct {
	// Release is what `cleave version` says.
	Release string
	// Service connects to the control plane at a socket.
	Service func(socket string) Control
	// Storage connects to the data plane at a socket.
	Storage func(socket string) Storage
	// RunArray runs the data plane, and RunServe the control plane, until ctx
	// ends. They return when all has been closed.
	RunArray func(ctx context.Context, o ArrayOptions, log *slog.Logger) error
	RunServe func(ctx context.Context, o ServeOptions, log *slog.Logger) error
	// Arrays asks the arrays of a configuration ("": the one at the data plane's
	// socket) how they are; one that does not answer is among them.
	Arrays func(ctx context.Context, config, socket string) ([]Array, error)
	// Examine looks at the same arrays all at once: what each can do, and what the
	// next set would be refused.
	Examine func(ctx context.Context, o ExamineOptions) ([]Examination, error)
	// Rescan makes the catalogue of an embedded array that does not run anew.
	Rescan func(ctx context.Context, o RescanOptions) (Rescan, error)
	// InspectDisks describes what is on devices of this host that belong
	// together, and OpenDisks opens volumes on them, by name or UUID (none:
	// all) until the Disks are closed. Both do so in a process of its own:
	// what is on a guest's disk is data from a stranger.
	InspectDisks func(ctx context.Context, s LUNSources) (*recovery.Report, Disks, error)
	OpenDisks    func(ctx context.Context, s LUNSources, volumes ...string) (Disks, error)
	// OpenFiles opens the file system in a volume, by the volume's name or UUID,
	// in such a process, until the Files are closed.
	OpenFiles func(ctx context.Context, s LUNSources, volume string) (Files, error)
	// Mount shows the files of a volume in a directory until Unmount, or any
	// unmount(8), by a process that outlives the caller. The warnings are about
	// what is readable all the same. That nothing is mounted is success of
	// Unmount.
	Mount   func(ctx context.Context, o MountOptions) (warnings []string, err error)
	Unmount func(dir string) error
	// Confinement tries out what keeps such a process from everything else.
	Confinement func(ctx context.Context) (Confinement, error)
	// RecoverInPlace puts volumes on sources back to their snapshots, in such a
	// process. begin is called once with the plan, before the first write; then
	// progress with the bytes written, out of the plan's.
	RecoverInPlace func(ctx context.Context, o InPlaceOptions, begin func(*InPlacePlan) error, progress recovery.Progress) error
	// CopyDisk copies a disk with its volumes put back to a new file. progress
	// makes a bar once the size is known.
	CopyDisk func(ctx context.Context, o CopyDiskOptions, progress func(size int64) recovery.Progress) (CopiedDisk, error)
	// ServeLUNs serves devices by iSCSI until ctx ends, and calls
	// ready once initiators can log in. When it returns nobody is served any
	// more, and what was made for it is gone.
	ServeLUNs func(ctx context.Context, o LUNOptions, ready func([]ServedLUN) error, log *slog.Logger) error
	// Attach makes block devices of this host.
	Attach Attach
	// ServeNBD serves volumes by NBD until ctx ends, and calls ready once clients
	// can connect. When it returns nobody is served any more, and what was made
	// for it is gone.
	ServeNBD func(ctx context.Context, o NBDOptions, ready func([]NBDExport) error, log *slog.Logger) error
	// ControlSocket and ArraySocket are where the planes listen if nobody says
	// otherwise.
	ControlSocket, ArraySocket string
	// Extra commands, made elsewhere.
	Extra []func(Streams) *cobra.Command
}

// Attach makes sources block devices of this host, and takes them away.
type Attach interface {
	Attach(ctx context.Context, o AttachOptions) (Attachment, error)
	// Detach takes one away, by its device, its source or its ID. That it is not
	// there is success.
	Detach(ctx context.Context, what string) error
	List() ([]Attachment, error)
	// Rules are udev's for such devices, and CheckRules says where they are
	// installed ("": no udev runs here).
	Rules() []byte
	CheckRules() (path string, err error)
}

// Control is a control plane at the other end of a socket.
type Control interface {
	orchestrator.Service
	io.Closer
	// Version asks which release it is.
	Version(ctx context.Context) (string, error)
}

// ArrayOptions is what `cleave array` was told. Empty fields leave the
// configuration's word.
type ArrayOptions struct {
	Config string // path; "" if there is none
	Socket string
	State  string
	Pools  map[string]string // directory by name
	// PoolLimits are the bytes that may be used of a pool, by its name.
	PoolLimits map[string]int64
	Portals    []string // ADDRESS:PORT[,GROUP]
	IQN        string
}

// ServeOptions is what `cleave serve` was told.
type ServeOptions struct {
	Config    string
	Socket    string
	WithArray bool
}

// Confinement is what keeps a process that opens a guest's disk from the rest of
// the host.
type Confinement struct {
	Means   string   // what holds, in a few words
	Missing []string // what this kernel lacks
	Allowed []string // what the process could do all the same
}

// LUNSources are devices that belong together.
type LUNSources struct {
	Paths []string // files, block devices, LUNs as iscsi:// URLs, and NBD URIs
	Login LUNLogin // to those
	// Raw takes their own bytes for the disks. Otherwise each may be a virtual
	// disk, which may need files that are beside it.
	Raw bool
	// Also names files beside a source that are of its virtual disk and may be
	// written where the source may: what a header names is not enough, since a
	// guest can write one on a raw disk.
	Also []string
	// Snapshot has each virtual disk looked at as it was at that snapshot of
	// its container, by name or ID.
	Snapshot string
}

// LUNLogin is what a URL does not say about logging in to a target.
type LUNLogin struct {
	Initiator    iscsi.Name // "": this host's
	Secret       []byte     // of the URL's user; in no message
	MutualUser   string     // "": the target needn't prove itself
	MutualSecret []byte     // in no message
	// Identities are who the LUNs at URLs must be; at others, whoever is there.
	Identities map[string]string
}

// Disks is what is on devices that belong together.
type Disks struct {
	io.Closer // nil if nothing is open

	Names    []string // of all volumes
	Damage   []error  // what hides a part
	Warnings []error  // what hides nothing, and should be known
	Volumes  []Disk   // those that were asked for
}

// Disk is a volume on them.
type Disk struct {
	Name string
	// Open opens the volume's content; the caller closes it.
	Open func(ctx context.Context) (Content, error)
}

// Content is a device to read.
type Content interface {
	lun.Device
	io.Closer
}

// CopyDiskOptions is what `cleave lun recover --to` without a volume was told.
type CopyDiskOptions struct {
	Sources   LUNSources // one
	Snapshots []string   // none: every volume that has exactly one
	To        string     // a new file
	Identity  IdentityOptions
}

// CopiedDisk is what came of it.
type CopiedDisk struct {
	Size        int64 // bytes
	Recovered   []Recovered
	NewIdentity *NewIdentity // nil: that of the source
	Warnings    []error
}

// IdentityOptions say whether a recovered disk gets identifiers of its own.
type IdentityOptions struct {
	New bool
	// Seed gives the same ones again; "" is one made of the sources' paths and
	// the target's name for a LUN, and a random one for a file.
	Seed string
}

// NewIdentity is what a recovered disk is called otherwise than its source.
type NewIdentity struct {
	Seed    string                `json:"seed"`
	Changed []recovery.Identifier `json:"changed"`
}

// Files is a file system that a process of its own reads.
type Files struct {
	io.Closer
	FS       fs.FS
	Warnings []error
}

// LUNOptions is what `cleave lun serve` and `cleave lun recover --serve` were
// told.
type LUNOptions struct {
	Sources LUNSources // one LUN each, in this order; those of lun serve are raw

	// Recover serves the sources with volumes put back to their in-guest
	// snapshots, and never writes to a source; without it the sources
	// themselves are served.
	Recover bool
	// Snapshots to put volumes back to, by UUID or name. None: every volume
	// that has exactly one.
	Snapshots []string
	// Overlay is the directory for what is written to recovered LUNs; "" is the
	// system's for temporary files.
	Overlay string
	// Identity is for what is recovered.
	Identity IdentityOptions

	Portal     netip.AddrPort
	IQN        iscsi.Name
	Initiators []iscsi.Name // none: any
	User       string       // CHAP; "" if there is none
	Secret     []byte       // its secret; in no message
	ReadOnly   bool
}

// ServedLUN is a LUN that initiators can see.
type ServedLUN struct {
	Source   string `json:"source"`
	URL      string `json:"url"` // iscsi://portal/iqn/lun
	Portal   string `json:"portal"`
	IQN      string `json:"iqn"`
	LUN      int    `json:"lun"`
	NAA      string `json:"naa"`
	Size     int64  `json:"size"` // bytes
	Writable bool   `json:"writable"`
	// Both are of all LUNs of the view together.
	Recovered   []Recovered  `json:"recovered,omitempty"`
	NewIdentity *NewIdentity `json:"newIdentity,omitempty"`
}

// NBDOptions is what `cleave lun nbd` was told.
type NBDOptions struct {
	Sources LUNSources
	// Volumes to serve, by name or UUID. None: the whole disks. With Recovered
	// they are the snapshots to put volumes back to. None: every volume that
	// has exactly one.
	Volumes   []string
	Recovered bool   // the whole disks, with volumes put back
	Overlay   string // directory for what is written to those; "" is the system's for temporary files
	Writable  bool   // a recovered disk, or raw sources themselves

	Socket string         // path; "" takes one in a folder that is removed at the end
	Listen netip.AddrPort // instead of a socket, if valid
	TLS    NBDTLS
}

// NBDTLS is the files of an NBD server's TLS, in PEM.
type NBDTLS struct {
	Certificate, Key string // "": no TLS
	ClientCA         string // whose certificates clients must show; "": anyone's
	Optional         bool   // clients without TLS are served as well
}

// NBDExport is a device that NBD clients can open.
type NBDExport struct {
	URL       string      `json:"url"`
	Name      string      `json:"name"`             // also its export name
	Source    string      `json:"source,omitempty"` // of a whole disk
	Socket    string      `json:"socket,omitempty"`
	Address   string      `json:"address,omitempty"`
	Size      int64       `json:"size"` // bytes
	Writable  bool        `json:"writable"`
	Recovered []Recovered `json:"recovered,omitempty"` // on all disks together
}

// Recovered is a volume that shows the content of its in-guest snapshot.
type Recovered struct {
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot"`
	UUID     string `json:"uuid"` // of the snapshot
	// Discarded are other snapshots of the volume, which are worthless over the
	// recovered one and not there any more.
	Discarded []string `json:"discarded,omitempty"`
}

// Storage administers the volumes of the embedded array, and who sees them.
// Volumes go by name. Errors carry a driver.Kind.
type Storage interface {
	io.Closer
	Mirrors
	Volumes(ctx context.Context) ([]Volume, error)
	// CreateVolume and SetSnapshotPolicy take what splits are to be made of:
	// "mirror", "reflink" or "auto".
	CreateVolume(ctx context.Context, name string, size int64, pools []string, snapshots string) (Volume, error)
	SetSnapshotPolicy(ctx context.Context, name, snapshots string) (Volume, error)
	ResizeVolume(ctx context.Context, name string, size int64) (Volume, error)
	DeleteVolume(ctx context.Context, name string) error
	ExposeVolume(ctx context.Context, name string, initiators []string, readOnly bool) (Volume, error)
	UnexposeVolume(ctx context.Context, name string) error
	// StartScrub begins to compare a volume's mirrors, WaitScrub returns what
	// that came to, and StopScrub ends it early.
	StartScrub(ctx context.Context, name string, repair bool) (Volume, error)
	WaitScrub(ctx context.Context, name string) (Scrub, error)
	StopScrub(ctx context.Context, name string) error

	Initiators(ctx context.Context) ([]Initiator, error)
	// AddInitiator lets an initiator log in. Secrets are in files, named by
	// absolute paths, that the data plane reads at each start; an initiator
	// without a user has no CHAP.
	AddInitiator(ctx context.Context, i Initiator, secretFile, mutualFile string) error
	RemoveInitiator(ctx context.Context, iqn string) error

	Pools(ctx context.Context) ([]Pool, error)
	// Status describes the data plane at a glance.
	Status(ctx context.Context) (ArrayStatus, error)
	// Events are those that match and are still kept, oldest first.
	Events(ctx context.Context, q EventQuery) ([]Event, error)

	// Masks are who sees which LUN, by initiator and number. SetMask says what
	// one initiator may do with a volume (by name) or a snapshot (by ID).
	Masks(ctx context.Context) ([]Mask, error)
	SetMask(ctx context.Context, of, initiator, access string) error
}

// Volume is a volume as an operator sees it. Sizes are bytes.
type Volume struct {
	Name      string    `json:"name"`
	ID        string    `json:"id"`
	Size      int64     `json:"size"`
	NAA       string    `json:"naa,omitempty"`
	State     string    `json:"state"`
	Wanted    int       `json:"wanted"` // mirrors it should have, those split off included
	Mirrors   []Mirror  `json:"mirrors"`
	Policy    string    `json:"policy"` // what splits are made of
	Snapshots []string  `json:"snapshots,omitempty"`
	UsedBy    []string  `json:"usedBy,omitempty"`
	Created   time.Time `json:"created,omitzero"`
	Scrub     *Scrub    `json:"scrub,omitempty"` // under way, or the last
	LUN       *Exposed  `json:"lun,omitempty"`

	// UnmirroredSince is set while fewer than two mirrors are in sync.
	UnmirroredSince time.Time `json:"unmirroredSince,omitzero"`
	// Remaining is how long it takes until all mirrors are in sync, in
	// nanoseconds; 0 if nothing is copied or no pace is known.
	Remaining time.Duration `json:"remaining,omitempty"`
	// Recovering is how many bytes are still to be compared after a crash.
	Recovering int64 `json:"recovering,omitempty"`
}

// Scrub is a comparison of a volume's mirrors. Sizes are bytes.
type Scrub struct {
	Begun  time.Time `json:"begun"`
	Ended  time.Time `json:"ended,omitzero"` // zero while it is under way
	Repair bool      `json:"repair,omitempty"`

	Size     int64 `json:"size"`
	Done     int64 `json:"done"`     // gone through
	Compared int64 `json:"compared"` // read; the rest of Done are holes in all mirrors
	Mirrors  int   `json:"mirrors"`

	Differing   int64             `json:"differing"`
	Repaired    int64             `json:"repaired"`
	Places      int64             `json:"places"`
	Differences []ScrubDifference `json:"differences,omitempty"` // the first places
	Remaining   time.Duration     `json:"remaining,omitempty"`
	Reason      string            `json:"reason,omitempty"` // why it ended early
}

// ScrubDifference is a place at which mirrors differ, with what each held.
type ScrubDifference struct {
	Off      int64         `json:"off"`
	Len      int64         `json:"len"`
	Mirrors  []ScrubMirror `json:"mirrors"`
	Repaired bool          `json:"repaired,omitempty"`
}

// ScrubMirror is what a mirror held.
type ScrubMirror struct {
	ID     string `json:"id"`
	Pool   string `json:"pool"`
	SHA256 string `json:"sha256"` // hex
}

// Exposed is how initiators reach a volume.
type Exposed struct {
	IQN        string   `json:"iqn"`
	LUN        uint64   `json:"lun"`
	Portals    []string `json:"portals"`
	Initiators []string `json:"initiators"`
	ReadOnly   bool     `json:"readOnly,omitempty"`
}

// Initiator may log in to the target.
type Initiator struct {
	IQN      string   `json:"iqn"`
	User     string   `json:"user,omitempty"`   // CHAP
	Mutual   string   `json:"mutual,omitempty"` // CHAP user by which the target proves itself
	Sessions int      `json:"sessions"`
	LUNs     []string `json:"luns,omitempty"`
}

// Pool is a directory that holds mirrors. Sizes are bytes; Size and Free are of
// the file system, or of Limit where that is less.
type Pool struct {
	Name        string `json:"name"`
	Dir         string `json:"dir"`
	Size        int64  `json:"size"`
	Free        int64  `json:"free"`
	Limit       int64  `json:"limit,omitempty"`
	Used        int64  `json:"used"`             // by raw files
	Provisioned int64  `json:"provisioned"`      // if all in them were written
	Health      string `json:"health"`           // ok, low, full, read-only, offline
	Reflink     bool   `json:"reflink"`          // it can hold snapshots by reflink
	Reason      string `json:"reason,omitempty"` // why it can't be used
}

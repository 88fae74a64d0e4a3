package orchestrator

import "time"

// Power is what a hypervisor says of a VM.
type Power string

const (
	Running      Power = "running"
	Paused       Power = "paused"
	Off          Power = "off"
	PowerUnknown Power = "unknown" // the hypervisor did not answer
)

// VM is what a host writer reports of a machine: facts, no judgement.
type VM struct {
	Name   string `json:"name"`
	ID     string `json:"id,omitempty"` // the hypervisor's UUID
	Writer string `json:"writer"`       // the host writer that speaks for it: "qemu", …
	Power  Power  `json:"power"`
	Config string `json:"config,omitempty"` // its configuration file
	Disks  []Disk `json:"disks"`
	Guest  Guest  `json:"guest"`
	// Problem says why the writer could not learn all this ("" if it could).
	Problem string `json:"problem,omitempty"`
}

// Disk is a virtual disk and what lies under it, as the hypervisor knows it.
type Disk struct {
	Device   string `json:"device"` // the hypervisor's name for the disk
	Format   string `json:"format"` // "raw", "qcow2", …
	Size     int64  `json:"size,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	Cache    string `json:"cache"` // "none", "writeback", "writethrough", "directsync", "unsafe"

	// One of these says where it lies; see driver.Disk for what each means.
	IQN    string `json:"iqn,omitempty"`
	LUN    uint64 `json:"lun,omitempty"`
	Portal string `json:"portal,omitempty"`
	// Initiator is as which the hypervisor itself reaches IQN and LUN; "" if that is
	// not known.
	Initiator string `json:"initiator,omitempty"`

	Path   string `json:"path,omitempty"`
	NAA    string `json:"naa,omitempty"`
	Serial string `json:"serial,omitempty"`
	// Backing is the file that its container names as the one below it; "" if none.
	Backing string `json:"backing,omitempty"`
}

// Guest is what the guest answered when it was asked for its requester.
type Guest struct {
	// Requester is who answered, with its version ("qemu-ga 7.2.0"); empty if
	// nobody did, and Silence says why.
	Requester string `json:"requester,omitempty"`
	Silence   string `json:"silence,omitempty"`
	// CanSnapshot: the requester may run the guest step (guest-exec allowed,
	// tools present). Cannot says what is missing.
	CanSnapshot bool   `json:"canSnapshot"`
	Cannot      string `json:"cannot,omitempty"`
	// CanFreeze: the requester can freeze and thaw file systems.
	CanFreeze bool          `json:"canFreeze"`
	Volumes   []GuestVolume `json:"volumes,omitempty"`
	Writers   []GuestWriter `json:"writers,omitempty"`
}

// GuestVolume is a volume that the guest can snapshot inside its own disks.
type GuestVolume struct {
	Name  string `json:"name"` // "vg/lv"
	UUID  string `json:"uuid"`
	Kind  string `json:"kind"` // "lvm-thick", "lvm-thin", …
	Mount string `json:"mount,omitempty"`
	FS    string `json:"fs,omitempty"`
	Size  int64  `json:"size,omitempty"`
	Free  int64  `json:"free,omitempty"` // bytes its group has left for the snapshot's store
	// Why it can't be snapshot ("" if it can).
	Cannot string `json:"cannot,omitempty"`
}

// GuestWriter is an application that takes part in the guest's snapshot.
type GuestWriter struct {
	App     string   `json:"app"`
	Version string   `json:"version,omitempty"`
	Running bool     `json:"running"`
	Volumes []string `json:"volumes,omitempty"` // the guest volumes that hold its data
	Cannot  string   `json:"cannot,omitempty"`  // why it can't take part
}

// Verdict is the class of a VM and why. A host writer or the requester may give
// it; the requester may only lower it.
type Verdict struct {
	VM      string   `json:"vm"`
	Class   Class    `json:"class"`
	Best    Level    `json:"best"` // the best level that can be reached now
	How     How      `json:"how,omitempty"`
	Reason  string   `json:"reason"`  // one line
	Volumes []string `json:"volumes"` // array volumes under its disks, "array/volume"
}

// How is the way in which a VM's copy is made.
type How string

const (
	ByGuest  How = "guest-snapshot" // the guest snapshots its own volumes; then the split
	ByPause  How = "pause"          // it is paused over the split
	ByItself How = "as-it-is"       // it does not run: only the split
)

// Pause is how long a VM stood still, measured on the host.
type Pause struct {
	From     time.Time     `json:"from"`
	For      time.Duration `json:"for"`
	ByGuard  bool          `json:"byGuard,omitempty"`  // the guard resumed it at its deadline: the split is outside the pause
	WasState Power         `json:"wasState,omitempty"` // what it was before; only a running VM is resumed
}

package worker

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/vdisk"
)

// Source is one of the devices that belong together, e.g. the disks of a guest
// whose volume group spans them.
type Source struct {
	// Name is what messages call it.
	Name string
	// Device must stay open while the worker lives, but for one that is a
	// lun.Filer, whose descriptor the worker gets, reopened read-only. A
	// lun.Lender is served to a worker that may be detached by a process of its
	// own, and any other from this process.
	Device lun.Device
	// Files opens the further files that a container in Device names, on this
	// side: the worker gets descriptors, for reading only but where InPlace
	// writes to a file of the layer itself. nil opens none.
	Files vdisk.Resolver
}

// Spec says what a worker is to open and how.
type Spec struct {
	Sources []Source
	// Containers has the sources looked at as files that may be virtual disks,
	// whose contents are then meant; see open.Source.
	Containers bool
	// ContainerSnapshot has each container looked at as it was at that internal
	// snapshot; see open.Source.
	ContainerSnapshot string

	// Places are the disks that are meant, where the sources are volumes of a host
	// on which they lie; none where the sources are the disks. Containers is not
	// for them: a place says which format its disk has.
	Places []open.Place

	// NoRecovery has Start show the disks as they are, whatever snapshots there
	// are.
	NoRecovery bool
	// Snapshots chooses what Start recovers, by UUID; see
	// recovery.ViewOptions.
	Snapshots []string
	// Socket is the path where Start has the view served; its directory must
	// be private to those who may read the guest's data. It must not exist.
	Socket string
	// NewIdentity is the seed of identifiers that only the view has; see
	// recovery.ViewOptions. "" keeps those of the sources.
	NewIdentity string
	// ReadOnly serves the view without its overlay.
	ReadOnly bool
	// OverlayDir holds what is written to the view, in files that are unlinked
	// at once. Empty: the system's directory for temporary files.
	OverlayDir string
	// OverlayLimit bounds what is written to each device, in bytes; 0: none.
	OverlayLimit int64
	// Detachable lets Worker.Detach be called. All devices must be lun.Filers or
	// lun.Lenders.
	Detachable bool

	// Journal is for InPlace, where a recovery is staged: it keeps what is about to
	// be written; see recovery.InPlaceOptions. It is open for reading and writing,
	// and lies on none of the sources. nil refuses such recoveries. What it holds in
	// the end is no longer needed once InPlace has returned no error.
	Journal *os.File

	// Timeout bounds the whole of Inspect and Check, Start until the view is
	// served, and each step of InPlace. Default 2 min.
	Timeout time.Duration
	// Limits of the process; zero fields have defaults.
	Limits Limits

	// Exe is the program, whose arguments after its own name Args precede
	// ours. Default: this program, with "worker".
	Exe  string
	Args []string
	// Stderr is where the worker writes a panic, besides the error that it
	// becomes here. Default: nowhere. A detached worker needs a file here for
	// its later words to be kept.
	Stderr *os.File
}

// Limits of a worker process.
type Limits struct {
	Memory int64         // bytes of private memory; default 1 GiB
	Files  int           // open descriptors; default 256, and 1024 more for further files
	Tasks  int           // threads, where the worker has a user of its own; default 256
	CPU    time.Duration // processor time of Inspect and Check, whole seconds; default 10 min
}

func (s *Spec) check() error {
	if len(s.Sources) == 0 {
		return errors.New("recovery worker: no devices given")
	}
	if len(s.Sources) > maxSources {
		return fmt.Errorf("recovery worker: %d devices, at most %d", len(s.Sources), maxSources)
	}
	for _, src := range s.Sources {
		if src.Device == nil {
			return fmt.Errorf("recovery worker: %s has no device", src.Name)
		}
		_, file := src.Device.(lun.Filer)
		_, lent := src.Device.(lun.Lender)
		if s.Detachable && !file && !lent {
			return fmt.Errorf("recovery worker: %s is no file and can't be lent, so a worker on it can't outlive this process", src.Name)
		}
	}
	return nil
}

// disks is how many disks are meant.
func (s *Spec) disks() int {
	if len(s.Places) > 0 {
		return len(s.Places)
	}
	return len(s.Sources)
}

// resolves reports whether any further file may be opened.
func (s *Spec) resolves() bool {
	return slices.ContainsFunc(s.Sources, func(src Source) bool { return src.Files != nil })
}

func (s *Spec) defaults() {
	set := func(p *int64, v int64) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&s.Limits.Memory, 1<<30)
	files, tasks := int64(s.Limits.Files), int64(s.Limits.Tasks)
	set(&files, 256)
	if s.resolves() && s.Limits.Files <= 0 {
		files += maxFiles
	}
	set(&tasks, 256)
	s.Limits.Files, s.Limits.Tasks = int(files), int(tasks)
	set((*int64)(&s.Limits.CPU), int64(10*time.Minute))
	set((*int64)(&s.Timeout), int64(2*time.Minute))
	if s.Exe == "" {
		s.Exe = "/proc/self/exe"
	}
	if s.Args == nil {
		s.Args = []string{"worker"}
	}
}

// Export is one device of a view, as the worker serves it.
type Export struct {
	Name     string `json:"name"` // "0", "1", …: the source's place
	Size     int64  `json:"size"` // bytes
	Logical  int    `json:"logical"`
	Physical int    `json:"physical"`
}

// Ready is what a worker says once its view is served.
type Ready struct {
	Exports []Export             `json:"exports"`
	Volumes []recovery.Recovered `json:"volumes"`
	// Identity is what Spec.NewIdentity changed.
	Identity []recovery.Identifier `json:"identity,omitempty"`
	// Warnings are about what is on the devices and is read all the same.
	Warnings []*Error `json:"warnings,omitempty"`
}

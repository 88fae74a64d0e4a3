// Package writer is what a host writer implements: it speaks for the VMs of one
// hypervisor. It lists them and what lies under their disks, relays to the
// guest requester inside them, and pauses and resumes them.
//
// Adding a hypervisor: implement Writer, pass writertest.Run, and name it once
// in plugin/assemble.
package writer

import (
	"context"
	"errors"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
)

// Writer speaks for the VMs of one hypervisor. All methods may be called at
// once; calls for different VMs do not wait for each other. Every call obeys
// its context, also where the hypervisor or the guest hangs.
type Writer interface {
	// Name of the writer: "qemu", "libvirt", "vsphere".
	Name() string

	// List reports every VM with its disks and the answer of its guest. A VM
	// that can't be asked is listed with its Problem; it never goes missing.
	List(ctx context.Context) ([]orchestrator.VM, error)

	// Snapshot has the guest requester of vm run the guest step of set, from
	// the application writers to the completion of every volume, and returns
	// the guest's report. When it returns, with or without an error, no guest
	// writer is held: the guest ends or undoes the step by itself within
	// o.Limit, whatever becomes of the host. A report with a zero Finished, or
	// without a volume, says that this did not complete.
	Snapshot(ctx context.Context, vm string, set orchestrator.SetID, o GuestOptions) (wire.Report, error)

	// Drop has the guest remove the snapshots of set, and whatever else the
	// step left. That there is nothing (left) is success; that the VM is off
	// is ErrGone, that the writer knows no such VM orchestrator.ErrNotFound.
	// Drop may be called while the step runs: it ends it.
	Drop(ctx context.Context, vm string, set orchestrator.SetID) error

	// Pause stops vm's processors and returns when they stand. From then on a
	// guard that does not depend on this process resumes it, at the latest
	// when limit has passed or this process has died. A VM that was not
	// running is left as it is, and Resume leaves it so.
	Pause(ctx context.Context, vm string, limit time.Duration) (Pause, error)
}

// Pause is a VM that stands still.
type Pause interface {
	// Resume lets the VM run again, returns when it does, and reports how long
	// it stood. After the guard has resumed it, Resume says so in ByGuard.
	// Calling it again returns the same.
	Resume(ctx context.Context) (orchestrator.Pause, error)
}

// GuestOptions bounds a guest step.
type GuestOptions struct {
	// Limit is kept inside the guest: when it passes before the step has
	// completed, the guest undoes everything.
	Limit time.Duration
	// Keep is after how long the guest drops its snapshots by itself.
	Keep time.Duration
	// Volumes to snapshot, by UUID; empty means all that the guest can.
	Volumes []string
}

// ErrGone says that a VM is not running, so nothing inside it can be asked.
var ErrGone = errors.New("the VM is not running")

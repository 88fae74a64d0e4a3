package lab

import (
	"errors"
	"fmt"
	"strings"
)

// Kind is what a VM is for; it decides what its init sets up.
type Kind string

const (
	// DB runs the QEMU guest agent and PostgreSQL, its data on ext4 on the
	// logical volume vgdata/pgdata of the first disk (see Layout), its WAL, if that
	// has a volume, on the second if there is one. Disks that already hold vgdata
	// are used as they are.
	DB Kind = "db"
	// Legacy has no agent: ext4 on the whole first disk, mounted at /srv/data,
	// and a writer that appends to /srv/data/lines five times a second.
	Legacy Kind = "legacy"
	// Proof touches no disk by itself; see Machine.Inspect and StartCluster.
	Proof Kind = "proof"
)

// VM describes a machine to boot. The zero value of every field but Kind has a
// sensible meaning.
type VM struct {
	Name   string // letters, digits, hyphens; default: the kind
	Kind   Kind
	Memory int // MiB, default 512
	CPUs   int // default 1
	Disks  []Disk
	Layout Layout // of a new DB disk

	// NoAgent leaves the guest agent out of a DB VM.
	NoAgent bool
	// Forward lists guest TCP ports that get a port on 127.0.0.1 of the host;
	// see Machine.Addr.
	Forward []int
	// Modules are kernel modules to load besides the base set, e.g.
	// "dm-thin-pool", "xfs", "iscsi_tcp"; what they depend on comes along.
	Modules []string
	// Args are appended to QEMU's command line.
	Args []string
	// Dir takes sockets, logs and records, and is kept. Default: a directory in
	// the system's temporary one, removed by Close. Its path must be short
	// (socket names are limited to 107 bytes).
	Dir string
	// Accel is "kvm" or "tcg"; default: whatever works here.
	Accel string
	// Paused starts QEMU with the CPUs stopped.
	Paused bool
}

// Layout sizes the logical volumes of a new DB disk, in lvcreate's words
// ("512M", "40%VG"). What is left stays free for snapshots.
type Layout struct {
	Data   string // vgdata/pgdata, default "50%VG"
	WAL    string // vgdata/pgwal, default none: the WAL is on pgdata
	Canary string // vgdata/canary, raw, default none
}

// Bus is how the guest sees a disk.
type Bus string

const (
	VirtioBlk Bus = "virtio-blk" // vda, vdb, …
	// Linux probes SCSI disks at once: of several, any may become sda.
	SCSIHD    Bus = "scsi-hd"    // sda, sdb, …, QEMU's own SCSI disk
	SCSIBlock Bus = "scsi-block" // sda, sdb, …, commands passed to the LUN: the guest sees its identity
)

// Disk is one disk of a VM: a file of the host, a LUN reached by QEMU's own
// iSCSI initiator, or what another driver of QEMU's reaches. Exactly one of File,
// LUN and Node is set.
type Disk struct {
	// ID is the qdev id and, with "-node" after it, the block node's name;
	// default "disk1", "disk2", …
	ID     string
	File   string
	Format string // of File, in QEMU's words: "vhdx", "vpc", …; default "raw"
	LUN    *LUN
	Node   map[string]any // options of QEMU's block driver (BlockdevOptions)
	Bus    Bus            // default VirtioBlk
	// Cache is QEMU's cache mode: "none" (default: O_DIRECT, flushes passed on),
	// "writeback", or "unsafe" (flushes ignored).
	Cache    string
	ReadOnly bool
	// Scratch disks are never written: what the guest writes is gone with it.
	Scratch bool
	Serial  string // at most 20 characters for virtio-blk
}

// LUN names a logical unit for QEMU's iSCSI initiator.
type LUN struct {
	Portal    string // ADDR:PORT, as the host reaches it
	Target    string // IQN
	Number    int
	Initiator string // IQN that QEMU logs in with
	User      string // CHAP, with Secret; empty: none
	Secret    string
}

func (v VM) withDefaults() (VM, error) {
	switch v.Kind {
	case DB:
		if len(v.Disks) == 0 {
			return v, errors.New("lab: a db VM needs a disk")
		}
	case Legacy:
		if len(v.Disks) == 0 {
			return v, errors.New("lab: a legacy VM needs a disk")
		}
		v.NoAgent = true
	case Proof:
		v.NoAgent = true
	default:
		return v, fmt.Errorf("lab: kind %q is not known (db, legacy, proof)", v.Kind)
	}
	if v.Name == "" {
		v.Name = string(v.Kind)
	}
	if strings.Trim(v.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return v, fmt.Errorf("lab: VM name %q: only lower-case letters, digits and hyphens", v.Name)
	}
	if v.Memory == 0 {
		v.Memory = 512
	}
	if v.CPUs == 0 {
		v.CPUs = 1
	}
	if v.Layout.Data == "" {
		v.Layout.Data = "50%VG"
	}
	disks := make([]Disk, len(v.Disks))
	for i, d := range v.Disks {
		if d.ID == "" {
			d.ID = fmt.Sprintf("disk%d", i+1)
		}
		if d.Format == "" {
			d.Format = "raw"
		}
		if d.Bus == "" {
			d.Bus = VirtioBlk
		}
		if d.Cache == "" {
			d.Cache = "none"
		}
		if err := d.check(); err != nil {
			return v, fmt.Errorf("lab: VM %s, disk %s: %w", v.Name, d.ID, err)
		}
		disks[i] = d
	}
	v.Disks = disks
	return v, nil
}

// count is how many of them are true.
func count(bs ...bool) (n int) {
	for _, b := range bs {
		if b {
			n++
		}
	}
	return n
}

func (d Disk) check() error {
	switch {
	case count(d.File != "", d.LUN != nil, d.Node != nil) != 1:
		return errors.New("needs a file, a LUN or a node, and only one of them")
	case d.Format != "raw" && (d.LUN != nil || d.Scratch):
		return errors.New("only a file that is no scratch disk has a format")
	case d.Bus != VirtioBlk && d.Bus != SCSIHD && d.Bus != SCSIBlock:
		return fmt.Errorf("bus %q is not known", d.Bus)
	case d.Bus == SCSIBlock && d.LUN == nil:
		return errors.New("scsi-block needs a LUN")
	case d.Cache != "none" && d.Cache != "writeback" && d.Cache != "unsafe":
		return fmt.Errorf("cache mode %q is not known", d.Cache)
	}
	return nil
}

// devices says under which name the guest sees each disk, in order.
func (v VM) devices() []string {
	var names []string
	next := map[string]byte{"vd": 'a', "sd": 'a'}
	for _, d := range v.Disks {
		prefix := "sd"
		if d.Bus == VirtioBlk {
			prefix = "vd"
		}
		names = append(names, "/dev/"+prefix+string(next[prefix]))
		next[prefix]++
	}
	return names
}

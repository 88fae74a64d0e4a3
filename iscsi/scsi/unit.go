package scsi

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/cleave-san/cleave/lun"
)

// Options of a Unit.
type Options struct {
	Identity lun.Identity // zero: the device's own, or a new one
	Writable bool
	Vendor   string // 8 characters of INQUIRY data; default "CLEAVE"
	Product  string // 16; default "VIRTUAL-DISK"
	Target   string // iSCSI name of the target, shown in VPD page 0x83

	// Groups are the target port groups by which the unit is reached (see
	// SetPortGroups); default: one, active/optimized, with port 1.
	Groups []PortGroup

	// Store keeps persistent reservations over restarts; nil: none survives.
	Store Store
}

// Limits that VPD page 0xB0 reports and Begin holds initiators to.
const (
	maxTransfer   = 8 << 20   // bytes of one command's data
	maxWriteSame  = 32 << 10  // blocks that one WRITE SAME covers
	maxUnmap      = 1 << 20   // blocks that one UNMAP covers
	maxVerify     = 256 << 20 // bytes that one VERIFY without data covers
	maxUnmapDescs = 256
	maxCompare    = 255 // blocks of one COMPARE AND WRITE
)

// Chunk is the most that a Unit asks a Sink for at once, in bytes.
const Chunk = 256 << 10

// Unit is a logical unit: a device and what initiators have told it. Its
// methods may be called at once from several goroutines. It starts none.
type Unit struct {
	dev     lun.Device
	trim    lun.Trimmer
	zero    lun.Zeroer
	extents lun.Mapper
	opt     Options

	shift uint8 // log2 of the logical block
	phys  uint8 // log2 of logical blocks in a physical one

	blocks   atomic.Uint64 // capacity that initiators have been told
	writable atomic.Bool
	wce      atomic.Bool // write cache on: writes are stable only after a sync
	swp      atomic.Bool // software write protect (control mode page)
	dsense   atomic.Bool // descriptor sense data

	// exclusive makes COMPARE AND WRITE and ORWRITE one step in the eyes of
	// other writes: these hold it shared.
	exclusive sync.RWMutex

	reserved atomic.Pointer[Nexus] // RESERVE(6)
	pr       atomic.Pointer[reservations]
	prMu     sync.Mutex // held over a change of pr, and taken before mu

	steps copySteps // copies that write to the unit now

	mu      sync.Mutex
	nexuses map[*Nexus]struct{}
	groups  []PortGroup

	stats counters

	// table is every command there is, for those that report on it.
	table []op
}

type counters struct {
	reads, writes, readBytes, writeBytes, errors atomic.Uint64
	running                                      atomic.Int64
}

// Stats counts what a unit has done.
type Stats struct {
	Reads, Writes, ReadBytes, WriteBytes, Errors uint64
	Running                                      int
}

// NewUnit makes a logical unit of a device, which must hold at least one whole
// logical block of 512 to 65536 bytes. The device stays the caller's.
func NewUnit(dev lun.Device, o Options) (*Unit, error) {
	logical, physical := 512, 512
	if b, ok := dev.(lun.Blocker); ok {
		logical, physical = b.Blocks()
	}
	switch {
	case logical < 512 || logical > 65536 || bits.OnesCount(uint(logical)) != 1:
		return nil, fmt.Errorf("logical block of %d bytes: want a power of two from 512 to 65536", logical)
	case physical < logical || bits.OnesCount(uint(physical)) != 1 || physical/logical > 1<<15:
		return nil, fmt.Errorf("physical block of %d bytes: want a power of two of at least the logical %d", physical, logical)
	case dev.Size() < int64(logical):
		return nil, fmt.Errorf("device of %d bytes: want at least one block of %d", dev.Size(), logical)
	}
	if o.Identity.IsZero() {
		if i, ok := dev.(lun.Identified); ok {
			o.Identity = i.Identity()
		}
		if o.Identity.IsZero() {
			o.Identity = lun.NewIdentity()
		}
	}
	if o.Vendor == "" {
		o.Vendor = "CLEAVE"
	}
	if o.Product == "" {
		o.Product = "VIRTUAL-DISK"
	}
	u := &Unit{
		dev: dev, opt: o, nexuses: map[*Nexus]struct{}{}, table: ops,
		shift: uint8(bits.TrailingZeros(uint(logical))),
		phys:  uint8(bits.TrailingZeros(uint(physical / logical))),
	}
	if len(o.Groups) == 0 {
		o.Groups = defaultGroups()
	}
	if err := checkGroups(o.Groups); err != nil {
		return nil, err
	}
	u.groups = clonedGroups(o.Groups)
	u.opt.Groups = nil
	if err := u.loadReservations(); err != nil {
		return nil, err
	}
	u.trim, _ = dev.(lun.Trimmer)
	u.zero, _ = dev.(lun.Zeroer)
	u.extents, _ = dev.(lun.Mapper)
	u.blocks.Store(uint64(dev.Size()) >> u.shift)
	u.writable.Store(o.Writable)
	u.wce.Store(true)
	return u, nil
}

// Identity is who the unit says it is.
func (u *Unit) Identity() lun.Identity { return u.opt.Identity }

// SetWritable allows or forbids writes from the next command on.
func (u *Unit) SetWritable(w bool) {
	if u.writable.Swap(w) != w {
		// The write protect bit stands in the mode parameter header.
		u.attentionAll(modeChanged, nil)
	}
}

// Resized takes over the device's size, and tells initiators if it changed.
func (u *Unit) Resized() {
	n := uint64(u.dev.Size()) >> u.shift
	if u.blocks.Swap(n) != n {
		u.attentionAll(capacityChanged, nil)
	}
}

// Reset is LOGICAL UNIT RESET (SAM-5 section 6.3.3): RESERVE(6) ends, mode
// parameters return to their defaults, everybody gets a unit attention.
// Persistent reservations stay. The transport aborts the commands.
func (u *Unit) Reset() {
	u.reserved.Store(nil)
	u.wce.Store(true)
	u.swp.Store(false)
	u.dsense.Store(false)
	u.mu.Lock()
	defer u.mu.Unlock()
	for n := range u.nexuses {
		n.copies.forget()
	}
	u.attentionAllLocked(resetOccurred, nil)
}

// Stats returns the counters.
func (u *Unit) Stats() Stats {
	c := &u.stats
	return Stats{c.reads.Load(), c.writes.Load(), c.readBytes.Load(), c.writeBytes.Load(),
		c.errors.Load(), int(c.running.Load())}
}

func (u *Unit) blockSize() int64 { return 1 << u.shift }

// attentionAll raises a unit attention for every nexus but one.
func (u *Unit) attentionAll(c Code, but *Nexus) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.attentionAllLocked(c, but)
}

func (u *Unit) attentionAllLocked(c Code, but *Nexus) {
	for n := range u.nexuses {
		if n != but {
			n.Attention(c)
		}
	}
}

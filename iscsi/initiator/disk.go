package initiator

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/lun"
)

// Disk is a LUN, as a lun.Device. All methods may be called at once. Transfers
// need not be whole blocks: reading a part of one costs a copy, writing it reads
// the block before, with all other writes held up meanwhile.
type Disk struct {
	o     Options
	isid  [6]byte
	name  string // for messages
	facts facts  // as they were at Open; id, block size and size stay
	chunk int    // most bytes of one command

	life context.Context
	end  context.CancelFunc

	cur   atomic.Pointer[session]
	epoch atomic.Uint64 // counts what may have cost the target its cache

	mu      sync.Mutex
	dialing *attempt
	failed  error // of the last attempt
	when    time.Time
	closed  bool
	next    int // portal to try first

	checks sync.Mutex // one identity check at a time
	part   sync.RWMutex
	stable stability

	noWriteSame atomic.Bool
}

var (
	_ lun.Device  = (*Disk)(nil)
	_ lun.Trimmer = (*Disk)(nil)
	_ lun.Zeroer  = (*Disk)(nil)
	_ lun.Mapper  = (*Disk)(nil)
	_ lun.Blocker = (*Disk)(nil)
)

// Open logs in, at the portals in turn, and finds out what the LUN is. ctx bounds
// that and nothing after. A target that can't be reached is an error at once.
func Open(ctx context.Context, o Options) (*Disk, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("iSCSI: %w", err)
	}
	d := &Disk{o: o, isid: newISID(), name: fmt.Sprintf("iSCSI LUN %s/%d", o.Target, o.LUN)}
	d.life, d.end = context.WithCancel(context.Background())
	s, err := d.dialAll(ctx, true)
	if err != nil {
		d.end()
		return nil, fmt.Errorf("%s: %w", d.name, err)
	}
	d.chunk = o.MaxTransfer
	if n := int64(d.facts.maxTransfer) * int64(d.facts.block); n > 0 && n < int64(d.chunk) {
		d.chunk = int(n)
	}
	d.chunk = max(d.chunk/d.facts.block, 1) * d.facts.block
	d.cur.Store(s)
	return d, nil
}

// Size is the size in bytes that the LUN had when it was opened.
func (d *Disk) Size() int64 { return d.facts.size }

// Blocks are the LUN's logical and physical block sizes in bytes.
func (d *Disk) Blocks() (logical, physical int) { return d.facts.block, d.facts.physical }

// ReadOnly says whether writes are refused, by the target or by Options.
func (d *Disk) ReadOnly() bool { return d.o.ReadOnly || d.facts.readOnly }

// ID is the LUN's identity in one line: the strongest designator of VPD page 0x83
// and the unit serial number. It is what Options.Identity takes.
func (d *Disk) ID() string { return d.facts.id() }

// Product is vendor and product as the LUN tells them.
func (d *Disk) Product() string { return d.facts.vendor + " " + d.facts.product }

// String is what the disk is called in messages.
func (d *Disk) String() string { return d.name }

// Close logs out. Requests under way fail with lun.ErrClosed, as do later ones. It
// does not Sync. A second call does nothing.
func (d *Disk) Close() error {
	d.mu.Lock()
	d.closed = true
	a := d.dialing
	d.mu.Unlock()
	d.end()
	if a != nil {
		<-a.done
	}
	if s := d.cur.Load(); s != nil {
		s.close()
	}
	return nil
}

// ReadAt reads, in several commands at once where p is longer than one takes.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p)), false); err != nil {
		return 0, err
	}
	block := int64(d.facts.block)
	if (off|int64(len(p)))&(block-1) == 0 {
		return d.transfer(p, off, false)
	}
	from, to := off&^(block-1), (off+int64(len(p))+block-1)&^(block-1)
	whole := make([]byte, to-from)
	if _, err := d.transfer(whole, from, false); err != nil {
		return 0, err
	}
	return copy(p, whole[off-from:]), nil
}

// WriteAt writes, in several commands at once where p is longer than one takes.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p)), true); err != nil {
		return 0, err
	}
	block := int64(d.facts.block)
	if (off|int64(len(p)))&(block-1) == 0 {
		d.part.RLock()
		defer d.part.RUnlock()
		return d.transfer(p, off, true)
	}
	// Nobody else may write the rest of the blocks between their reading and
	// their writing.
	if !d.part.TryLock() {
		d.cur.Load().attend() // to whom those belong that write may do something else now
		d.part.Lock()
	}
	defer d.part.Unlock()
	from, to := off&^(block-1), (off+int64(len(p))+block-1)&^(block-1)
	whole := make([]byte, to-from)
	if _, err := d.transfer(whole[:block], from, false); err != nil {
		return 0, err
	}
	if to-from > block {
		if _, err := d.transfer(whole[to-from-block:], to-block, false); err != nil {
			return 0, err
		}
	}
	n := copy(whole[off-from:], p)
	if _, err := d.transfer(whole, from, true); err != nil {
		return 0, err
	}
	return n, nil
}

func (d *Disk) check(off, n int64, write bool) error {
	if err := lun.CheckRange(off, n, d.facts.size); err != nil {
		return fmt.Errorf("%s: %d bytes at %d: %w", d.name, n, off, err)
	}
	if write && d.ReadOnly() {
		return fmt.Errorf("%s: %w", d.name, lun.ErrReadOnly)
	}
	return nil
}

// transfer moves whole blocks.
func (d *Disk) transfer(p []byte, off int64, write bool) (int, error) {
	if len(p) > d.chunk {
		return d.inChunks(p, off, write)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := d.move(p, off, write, nil); err != nil {
		return 0, err
	}
	return len(p), nil
}

// command is READ or WRITE of whole blocks.
func (d *Disk) command(p []byte, off int64, write bool) command {
	c := command{cdb: transferCDB(write, uint64(off)/uint64(d.facts.block), uint32(len(p)/d.facts.block)), exact: true}
	if write {
		c.out = p
	} else {
		c.in = p
	}
	return c
}

// move moves whole blocks by one command, of which there may have been a first
// attempt.
func (d *Disk) move(p []byte, off int64, write bool, first *outcome) error {
	c := d.command(p, off, write)
	if _, err := d.goOn(&c, write, first); err != nil {
		verb := "reading"
		if write {
			verb = "writing"
		}
		return fmt.Errorf("%s: %s %d bytes at %d: %w", d.name, verb, len(p), off, err)
	}
	return nil
}

// chunksAtOnce is how many commands one long transfer has under way.
const chunksAtOnce = 8

func (d *Disk) inChunks(p []byte, off int64, write bool) (int, error) {
	var wg sync.WaitGroup
	var next atomic.Int64
	var once sync.Once
	var failed error
	for range min(chunksAtOnce, (len(p)+d.chunk-1)/d.chunk) {
		wg.Go(func() {
			for {
				to := int(next.Add(int64(d.chunk)))
				from := to - d.chunk
				if from >= len(p) {
					return
				}
				if _, err := d.transfer(p[from:min(to, len(p))], off+int64(from), write); err != nil {
					once.Do(func() { failed = err })
					next.Add(int64(len(p)))
					return
				}
			}
		})
	}
	wg.Wait()
	if failed != nil {
		return 0, failed
	}
	return len(p), nil
}

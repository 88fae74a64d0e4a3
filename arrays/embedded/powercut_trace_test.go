package embedded

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
	"github.com/cleave-san/cleave/lun"
)

const (
	pcSteps   = 200
	pcSectors = 1024 // of a volume, at first
)

// pcTrace is a run of random operations on an array.
type pcTrace struct {
	ctx  context.Context
	rng  *rand.Rand
	fs   *disktest.FS
	m    *pcModel
	a    *Array
	devs map[*pcDevice]*Volume
	tags int
	// cleans: under load, one of so many writes is followed by a clean.
	cleans  int
	meddler *pcMeddler // while there is one

	steps int      // that it has
	more  []string // names of those that come often

	// watch is called at the sync points of fs, until over.
	watch func(*disktest.FS, disktest.Point)
	over  *atomic.Bool
	blind atomic.Bool // nothing is to be found out

	logMu  sync.Mutex
	taken  []string
	points []string
}

// pcWeights is how often each step comes.
var pcWeights = []struct {
	name   string
	weight int
	do     func(*pcTrace) error
}{
	{"write", 30, (*pcTrace).write},
	{"sync", 12, (*pcTrace).sync},
	{"split", 8, (*pcTrace).split},
	{"failing split", 2, (*pcTrace).failingSplit},
	{"write to split", 6, (*pcTrace).writeSplit},
	{"resync", 5, (*pcTrace).resync},
	{"delete split", 3, (*pcTrace).deleteSplit},
	{"wait", 3, (*pcTrace).wait},
	{"housekeeping", 10, (*pcTrace).housekeeping},
	{"clean", 4, (*pcTrace).clean},
	{"add mirror", 2, (*pcTrace).addMirror},
	{"remove mirror", 2, (*pcTrace).removeMirror},
	{"lose mirror", 2, (*pcTrace).loseMirror},
	{"repair", 2, (*pcTrace).repair},
	{"scrub", 1, (*pcTrace).scrub},
	{"grow", 1, (*pcTrace).grow},
	{"revert", 3, (*pcTrace).revert},
	{"reverse", 2, (*pcTrace).reverse},
	{"break", 1, (*pcTrace).breakOff},
	{"aborted split", 1, (*pcTrace).abortedSplit},
	{"create", 1, (*pcTrace).create},
	{"delete volume", 1, (*pcTrace).deleteVolume},
	{"restart", 2, (*pcTrace).restart},
	{"power cut", 2, (*pcTrace).powerCut},
}

// run performs the trace.
func (t *pcTrace) run() error {
	if err := t.open(); err != nil {
		return err
	}
	for range 1 + t.rng.IntN(3) {
		if err := t.create(); err != nil {
			return fmt.Errorf("create: %w", err)
		}
	}
	weights, sum := t.swarm()
	for i := range t.steps {
		n, j := t.rng.IntN(sum), 0
		for n >= weights[j] {
			n -= weights[j]
			j++
		}
		t.note(&t.taken, "step %d: %s", i, pcWeights[j].name)
		if err := pcWeights[j].do(t); err != nil {
			return fmt.Errorf("step %d, %s: %w", i, pcWeights[j].name, err)
		}
	}
	return t.close()
}

// swarm gives some steps more weight: what comes seldom in most traces comes often
// in some, and next to what else comes often in them.
func (t *pcTrace) swarm() (weights []int, sum int) {
	t.cleans = 4 + t.rng.IntN(20)
	for _, w := range pcWeights {
		n := w.weight
		if t.rng.IntN(4) == 0 {
			n += 10
		}
		if slices.Contains(t.more, w.name) {
			n += 40
		}
		weights, sum = append(weights, n), sum+n
	}
	return weights, sum
}

func (t *pcTrace) note(to *[]string, format string, args ...any) {
	t.logMu.Lock()
	*to = append(*to, fmt.Sprintf(format, args...))
	t.logMu.Unlock()
}

// lately is the end of the log.
func (t *pcTrace) lately() string {
	t.logMu.Lock()
	defer t.logMu.Unlock()
	last := func(l []string) []string { return l[max(0, len(l)-10):] }
	return strings.Join(slices.Concat(last(t.taken), last(t.points)), "\n")
}

func (t *pcTrace) open() (err error) {
	t.devs = map[*pcDevice]*Volume{}
	if t.a, err = Open(t.ctx, pcOptions(t.fs)); err != nil {
		return err
	}
	for _, d := range t.volumes() {
		if err := t.openVolume(d); err != nil {
			return err
		}
	}
	return nil
}

func (t *pcTrace) openVolume(d *pcDevice) (err error) {
	t.devs[d], err = t.a.OpenVolume(driver.VolumeID(d.name), "trace")
	return err
}

func (t *pcTrace) closeVolume(d *pcDevice) {
	t.devs[d].Close()
	delete(t.devs, d)
}

func (t *pcTrace) close() error {
	for _, h := range t.devs {
		h.Close()
	}
	return t.a.Close()
}

func (t *pcTrace) volumes() (out []*pcDevice) {
	for _, d := range t.m.vols {
		if d.there && !d.gone {
			out = append(out, d)
		}
	}
	return out
}

func (t *pcTrace) volume() *pcDevice {
	v := t.volumes()
	return v[t.rng.IntN(len(v))]
}

func (t *pcTrace) snapshots() (out []*pcMember) {
	for _, s := range t.m.splits {
		for _, k := range s.members {
			if k.there && !k.gone {
				out = append(out, k)
			}
		}
	}
	return out
}

func (t *pcTrace) snapshot() *pcMember {
	if s := t.snapshots(); len(s) > 0 {
		return s[t.rng.IntN(len(s))]
	}
	return nil
}

type pcTarget interface {
	lun.Device
	lun.Trimmer
	lun.Zeroer
}

// change writes, trims or zeroes n sectors of a device.
func (t *pcTrace) change(rng *rand.Rand, d *pcDevice, h pcTarget, first, n int) error {
	kind := rng.IntN(6)
	k := t.m.issue(d, first, n, kind < 2)
	off, length := int64(first)*sector, int64(n)*sector
	var err error
	switch kind {
	case 0:
		err = h.Trim(off, length)
	case 1:
		err = h.WriteZeroes(off, length)
	default:
		b := make([]byte, length)
		for i := range n {
			stamp(b[i*sector:(i+1)*sector], d.id, first+i, k)
		}
		_, err = h.WriteAt(b, off)
	}
	if err == nil {
		t.m.ack(k)
	}
	return err
}

// extent chooses where to write: little most of the time, and a lot at times.
func extent(rng *rand.Rand, sectors int) (first, n int) {
	n = 1 + rng.IntN(16)
	if rng.IntN(6) == 0 {
		n = 1 + rng.IntN(sectors/2)
	}
	return rng.IntN(sectors - n + 1), n
}

func (t *pcTrace) write() error {
	for range 1 + t.rng.IntN(4) {
		d := t.volume()
		first, n := extent(t.rng, len(d.hist))
		if err := t.change(t.rng, d, t.devs[d], first, n); err != nil {
			return err
		}
	}
	return nil
}

func (t *pcTrace) syncDevice(d *pcDevice, h pcTarget) error {
	acked := t.m.acked(d)
	err := h.Sync()
	if err == nil {
		t.m.synced(d, acked)
	}
	return err
}

func (t *pcTrace) sync() error {
	d := t.volume()
	return t.syncDevice(d, t.devs[d])
}

// underLoad performs fn while writers write, each to its own sectors, one write
// after the other and on changing volumes: a lot, so that all of the volumes
// changes, or so little that a change that gets lost is not made up for by others.
func (t *pcTrace) underLoad(fn func() error) error {
	if t.rng.IntN(4) == 0 {
		return fn()
	}
	var wg sync.WaitGroup
	errs := make([]error, pcZones-1)
	vols := t.volumes()
	stop := make(chan struct{})
	most := []int{1, 3, math.MaxInt}[t.rng.IntN(3)]
	for z := range pcZones - 1 {
		rng := rand.New(rand.NewPCG(t.rng.Uint64(), 0))
		wg.Go(func() {
			for i := 0; errs[z] == nil && i < most; i++ {
				if i >= 10 { // ten at least, and then for as long as fn works
					select {
					case <-stop:
						return
					default:
					}
				}
				d := vols[rng.IntN(len(vols))]
				first, n := inZone(rng, z)
				if errs[z] = t.change(rng, d, t.devs[d], first, n); errs[z] != nil {
					return
				}
				switch rng.IntN(t.cleans) {
				case 0:
					errs[z] = t.syncDevice(d, t.devs[d])
				case 1:
					if err := t.devs[d].v.cleanNow(); !errors.Is(err, errNotNow) {
						errs[z] = err
					}
				}
			}
		})
	}
	err := fn()
	close(stop)
	wg.Wait()
	for _, e := range errs {
		if err == nil && e != nil {
			err = fmt.Errorf("under load: %w", e)
		}
	}
	return err
}

// inZone chooses sectors of one writer.
func inZone(rng *rand.Rand, z int) (first, n int) {
	n = 1 + rng.IntN(12)
	return rng.IntN(pcSectors/64/pcZones)*64*pcZones + z*64 + rng.IntN(64-n), n
}

func (t *pcTrace) wait() error {
	return t.a.WaitInSync(t.ctx, driver.VolumeID(t.volume().name))
}

// housekeeping does what time does.
func (t *pcTrace) housekeeping() error {
	for _, d := range t.volumes() {
		v := t.devs[d].v
		for range 3 {
			v.log.nextTick()
		}
		if v.recovering.Load() > 0 {
			continue
		}
		if err := v.cleanIdle(); err != nil {
			return err
		}
	}
	for _, k := range t.snapshots() {
		s, err := t.a.findSnapshot(k.snap)
		if err != nil {
			return err
		}
		s.mu.Lock()
		w := s.write
		s.mu.Unlock()
		if w != nil {
			if err := w.cleanNow(); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanNow clears what marks it can.
func (s *set) cleanNow() error {
	s.cleaning.Lock()
	defer s.cleaning.Unlock()
	return s.cleanLocked(false)
}

func (t *pcTrace) clean() error { return t.devs[t.volume()].v.cleanNow() }

// pcFault says what a call to the file system fails with.
type pcFault func(op disktest.Op, name string) error

// pcMeddler writes in the middle of a call to the file system. It holds mu while
// it does, and for good once it is not to any more.
type pcMeddler struct {
	mu  sync.Mutex
	err error
}

// pcMeddling is for how long a call waits for what is done in the middle of it.
// That may have to wait for the call: for room in the log of one volume, while a
// split of several is undone, for which the clean of another is waited for that
// the call comes from. Then it goes on beside the call.
const pcMeddling = time.Second

// meddleAt writes to all volumes and clears their marks whenever it is asked of a
// call that at names, before the call has an effect; then fault says whether it
// succeeds. It is over when calm returns.
func (t *pcTrace) meddleAt(at func(disktest.Op, string) bool, fault pcFault) pcFault {
	rng, vols := rand.New(rand.NewPCG(t.rng.Uint64(), 0)), t.volumes()
	m := new(pcMeddler)
	t.meddler = m
	return func(op disktest.Op, name string) error {
		if at(op, name) && m.mu.TryLock() {
			done := make(chan struct{})
			go func() {
				defer m.mu.Unlock()
				defer close(done)
				for _, d := range vols {
					if m.err == nil {
						m.err = t.meddle(rng, d)
					}
				}
			}()
			select {
			case <-done:
			case <-time.After(pcMeddling):
			}
		}
		if fault == nil {
			return nil
		}
		return fault(op, name)
	}
}

// calm has calls to the file system succeed again, and nothing be done in the
// middle of them.
func (t *pcTrace) calm() error {
	t.fs.Fail(nil)
	m := t.meddler
	if m == nil {
		return nil
	}
	t.meddler = nil
	m.mu.Lock()
	if m.err != nil {
		return fmt.Errorf("in the middle of a call: %w", m.err)
	}
	return nil
}

// meddle writes to a volume, syncs it and clears marks, in one order or another.
// It does nothing where the call that it is in the middle of comes from a clean,
// for which a write may have to wait.
func (t *pcTrace) meddle(rng *rand.Rand, d *pcDevice) (err error) {
	h := t.devs[d]
	for range 2 + rng.IntN(3) {
		if !h.v.cleaning.TryLock() {
			return nil
		}
		what := rng.IntN(4)
		if what == 0 {
			err = h.v.cleanLocked(false)
		}
		h.v.cleaning.Unlock()
		switch what {
		case 1:
			err = t.syncDevice(d, h)
		case 2, 3:
			first, n := inZone(rng, pcZones-1)
			err = t.change(rng, d, h, first, n)
		}
		if errors.Is(err, errNotNow) {
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

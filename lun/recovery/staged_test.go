package recovery_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/redo"
	"github.com/cleave-san/cleave/lun/store/vss"
)

// stagedCases are recoveries by way of a redo journal.
var stagedCases = []struct {
	name, image, snapshot string
	discards              int
}{
	{"the only shadow copy", "vss-synth-14", "vss1", 0},
	{"the oldest of four", "vss-synth-3", "vss1", 3},
	{"one of four", "vss-synth-3", "vss2", 3},
	{"the youngest of three", "vss-synth-7", "vss3", 2},
	{"overlays and forwarders", "vss-synth-22", "vss1", 1},
	{"btrfs", "btrfs-open1", "a0d767db-b378-6b4b-b114-33ff07493a16", 0},
}

// staging is a machine with one disk, and a file for the journal.
func staging(t testing.TB, image string) (*machine, *file) {
	t.Helper()
	m := &machine{}
	m.add(partitioned(luntest.Image(t, image)))
	return m, m.newFile(len(m.disks[0].stable)*2 + 1<<20)
}

func prepareStaged(t testing.TB, m *machine, f redo.File, snapshot string) (*recovery.InPlace, error) {
	t.Helper()
	c, err := open.Probe(t.Context(), m.sources()...)
	if err != nil {
		t.Fatal(err)
	}
	return recovery.PrepareInPlace(t.Context(), c, recovery.InPlaceOptions{Snapshots: []string{snapshot}, DiscardOthers: true, Journal: f})
}

// settled is what a disk shall hold in the end, and where nothing is asked: where a
// shadow copy says of a block only that it was free.
func settled(t testing.TB, m *machine, snapshot string) (want []byte, free func(off int64) bool) {
	t.Helper()
	c := probe(t, m.sources()...)
	v, err := recovery.OpenView(t.Context(), c, recovery.ViewOptions{ReadOnly: true, Snapshots: []string{snapshot}})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	want = content(t, v.Clean[0])
	vol, err := c.Volume(snapshot)
	if err != nil {
		t.Fatal(err)
	}
	if vol.Shadow == nil {
		return want, func(int64) bool { return false }
	}
	s, err := vol.Keeper.Shadows.Open(vol.Shadow)
	if err != nil {
		t.Fatal(err)
	}
	none := make(map[int64]bool)
	for off := int64(0); off < s.Size(); off += sector {
		p, err := s.Locate(off)
		if err != nil {
			t.Fatal(err)
		}
		if p.Zero && off != vss.Guard {
			none[vol.Keeper.Off+off] = true
		}
	}
	return want, func(off int64) bool { return none[off&^(sector-1)] }
}

// like compares a disk with what it shall hold; of Btrfs, by what it means.
func like(t testing.TB, got, want []byte, free func(off int64) bool) {
	t.Helper()
	const part = 1 << 20 // of partitioned
	if string(want[part+64<<10+64:][:8]) == "_BHRfS_M" {
		for path, list := range map[string]string{"@": "btrfs-open1.snap.sha256", "@snap": "btrfs-open1.live.sha256"} {
			if got, want := fmt.Sprint(below(t, luntest.ReadOnly(got[part:]), path)), fmt.Sprint(oracle(t, list)); got != want {
				t.Errorf("%s is %s, want %s", path, got, want)
			}
		}
		return
	}
	for off := int64(0); off < int64(len(want)); off += sector {
		if end := min(off+sector, int64(len(want))); !free(off) && !bytes.Equal(got[off:end], want[off:end]) {
			t.Fatalf("byte %d is not the snapshot's", off)
		}
	}
}

// TestStaged: the disk becomes what the view of the snapshot shows, nothing is
// written but what is listed, and nothing before the journal is stable.
func TestStaged(t *testing.T) {
	for _, tc := range stagedCases {
		t.Run(tc.name, func(t *testing.T) {
			m, f := staging(t, tc.image)
			d := m.disks[0]
			want, free := settled(t, m, tc.snapshot)
			c := probe(t, m.sources()...)
			if _, err := recovery.PrepareInPlace(t.Context(), c, recovery.InPlaceOptions{Snapshots: []string{tc.snapshot}, DiscardOthers: true}); !errors.Is(err, recovery.ErrJournal) {
				t.Errorf("without a journal: %v", err)
			}
			if _, err := recovery.PrepareInPlace(t.Context(), c, recovery.InPlaceOptions{Snapshots: []string{tc.snapshot}, Journal: f}); tc.discards > 0 && !errors.Is(err, recovery.ErrDiscards) {
				t.Errorf("without the consent to lose others: %v", err)
			}
			p, err := prepareStaged(t, m, f, tc.snapshot)
			if err != nil {
				t.Fatal(err)
			}
			if m.writes != 0 || p.Done || p.Resumed || len(p.Discarded) != tc.discards {
				t.Errorf("%d writes, plan %+v", m.writes, p)
			}
			last := int64(0)
			if err := p.Run(t.Context(), func(n int64) { last = n }); err != nil {
				t.Fatal(err)
			}
			if last != p.Bytes() || len(d.cache) > 0 {
				t.Errorf("progress ended at %d of %d, %d sectors are not stable", last, p.Bytes(), len(d.cache))
			}
			like(t, d.stable, want, free)
			covers(t, p.Rewritten(), m)
			if strings.HasPrefix(tc.image, "vss") {
				if after := probe(t, m.sources()...); len(after.Keepers) > 0 {
					t.Error("there are still shadow copies")
				}
			} else {
				check(t, d.stable[1<<20:][:128<<20])
			}
			m.writes = 0
			again, err := prepareStaged(t, m, f, tc.snapshot)
			if err != nil || !again.Done || again.Volumes[0].Volume != p.Volumes[0].Volume || again.Run(t.Context(), nil) != nil || m.writes != 0 {
				t.Errorf("a second time: %+v, %v", again, err)
			}
			// Without its journal it is not taken for one to be done again, and with
			// it not after somebody has written to the disk.
			if p, err := prepareStaged(t, m, m.newFile(1<<20), tc.snapshot); err == nil {
				t.Errorf("a second time without the journal: %+v", p)
			}
			at := p.Rewritten()[0][0].Off
			if _, err := d.WriteAt(bytes.Repeat([]byte{0x5a}, sector), at); err != nil {
				t.Fatal(err)
			}
			if p, err := prepareStaged(t, m, f, tc.snapshot); !errors.Is(err, recovery.ErrJournal) {
				t.Errorf("with a journal of what has changed since: %+v, %v", p, err)
			}
		})
	}
}

// TestStagedInterruptedAtEveryWrite cuts the power of disk and journal in every write
// in turn. A second run ends it; what is half written says so, and is not taken for
// anything else. Of many writes, some have to do unless CLEAVE_EVERY_WRITE is set.
func TestStagedInterruptedAtEveryWrite(t *testing.T) {
	for _, tc := range stagedCases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m, f := staging(t, tc.image)
			want, free := settled(t, m, tc.snapshot)
			p, err := prepareStaged(t, m, f, tc.snapshot)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Run(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			total, marked := m.writes, 0
			step := total/24 + 1
			if os.Getenv("CLEAVE_EVERY_WRITE") != "" {
				step = 1
			}
			for n := 1; n <= total; n++ {
				if n > 8 && n < total-6 && n%step != 0 {
					continue
				}
				m.reset()
				m.cutAt, m.chance = n, rand.New(rand.NewPCG(2, uint64(n)))
				if p, err = prepareStaged(t, m, f, tc.snapshot); err != nil {
					t.Fatal(err)
				}
				if err := p.Run(t.Context(), nil); !errors.Is(err, errCut) {
					t.Fatalf("power cut in write %d of %d: %v", n, total, err)
				}
				m.restart()
				c, err := open.Probe(t.Context(), m.sources()...)
				if err != nil {
					t.Fatal(err)
				}
				if len(c.Damage) > 0 {
					marked++
					if _, err := prepareStaged(t, m, m.newFile(1<<20), tc.snapshot); err == nil || !strings.Contains(err.Error(), "with its redo journal") {
						t.Errorf("after a power cut in write %d of %d, with another journal: %v", n, total, err)
					}
					if _, err := recovery.OpenView(t.Context(), c, recovery.ViewOptions{ReadOnly: true}); err == nil {
						t.Errorf("after a power cut in write %d of %d there is a view", n, total)
					}
				} else if d := m.disks[0]; len(d.undo) > 0 {
					// Not begun, or all is there.
					like(t, d.stable, want, free)
				}
				m.writes = 0
				if p, err = prepareStaged(t, m, f, tc.snapshot); err != nil {
					t.Fatalf("after a power cut in write %d of %d: %v", n, total, err)
				}
				if err := p.Run(context.Background(), nil); err != nil {
					t.Fatalf("second run after a power cut in write %d of %d: %v", n, total, err)
				}
				like(t, m.disks[0].stable, want, free)
				covers(t, p.Rewritten(), m)
				if t.Failed() {
					return
				}
			}
			if marked == 0 {
				t.Error("no cut left it half written: the test does not test")
			}
			t.Logf("%d writes, %d cuts left it half written", total, marked)
		})
	}
}

// TestStagedOfAnother: a journal is no good to other disks, and is left alone by them.
func TestStagedOfAnother(t *testing.T) {
	m, f := staging(t, "vss-synth-14")
	p, err := prepareStaged(t, m, f, "vss1")
	if err != nil {
		t.Fatal(err)
	}
	m.cutAt, m.chance = 12, rand.New(rand.NewPCG(3, 3))
	if err := p.Run(t.Context(), nil); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	m.restart()
	for _, image := range []string{"vss-synth-14", "vss-synth-22"} {
		other, _ := staging(t, image)
		if p, err := prepareStaged(t, other, f, "vss1"); !errors.Is(err, recovery.ErrJournal) {
			t.Errorf("%s: %+v, %v", image, p, err)
		}
		if other.writes != 0 {
			t.Error("it was written to")
		}
	}
	if p, err = prepareStaged(t, m, f, "vss1"); err != nil || !p.Resumed {
		t.Errorf("on its own disk: %+v, %v", p, err)
	}
}

// TestStagedHostile: whatever a guest has written into the structures of its shadow
// copies, a recovery is refused before anything is written, or the volume becomes what
// the view shows.
func TestStagedHostile(t *testing.T) {
	good := luntest.Image(t, "vss-synth-3")
	var places []int
	for off := 0x1E00; off+64 <= len(good); off += 512 {
		if bytes.Equal(good[off:off+16], good[0x1E00:0x1E10]) {
			places = append(places, off)
		}
	}
	refused, done := 0, 0
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(4, seed))
		m := &machine{}
		m.add(bytes.Clone(good))
		d := m.disks[0]
		for range 1 + rnd.IntN(3) {
			at := places[rnd.IntN(len(places))]
			if rnd.IntN(2) == 0 { // headers, or what follows
				at += 16 + rnd.IntN(112)
			} else {
				at += 128 + rnd.IntN(512)
			}
			d.stable[at] = byte(rnd.Uint32())
		}
		split := bytes.Clone(d.stable)
		f := m.newFile(2*len(good) + 1<<20)
		name := fmt.Sprintf("vss%d", 1+rnd.IntN(4))
		c, err := open.Probe(t.Context(), m.sources()...)
		if err != nil {
			continue
		}
		o := recovery.InPlaceOptions{Snapshots: []string{name}, DiscardOthers: true, Journal: f}
		p, err := recovery.PrepareInPlace(t.Context(), c, o)
		var want []byte
		var free func(int64) bool
		if err == nil {
			want, free = settled(t, m, name)
			err = p.Run(t.Context(), nil)
		}
		if err != nil {
			refused++
			if !bytes.Equal(split, d.stable) || len(d.cache) > 0 {
				t.Fatalf("seed %d: refused (%v), and the disk has changed", seed, err)
			}
			continue
		}
		done++
		like(t, d.stable, want, free)
		covers(t, p.Rewritten(), m)
	}
	if refused == 0 || done == 0 {
		t.Errorf("%d were refused and %d done: this does not test", refused, done)
	}
	t.Logf("%d refused, %d done", refused, done)
}

// written is a file as a disk.
type written struct{ *os.File }

func openWritten(t *testing.T, path string) written {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return written{f}
}

func (w written) Size() int64 {
	st, err := w.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}

// TestStagedWindows puts a real volume of Windows back to both of its shadow copies.
// With what is undefined as vshadowmount has it, the volume's sum is that of
// vshadowmount.
func TestStagedWindows(t *testing.T) {
	dir, err := luntest.Testdata()
	if err != nil {
		t.Fatal(err)
	}
	c := probe(t, open.Source{Name: "disk", Device: source(t, filepath.Join(dir, "vsstest.qcow2")).Device, Containers: true})
	defer c.Close()
	for snapshot, want := range map[string]string{
		"vss1": "c8ada35c641a68447640b250f35e623b7f619aaae26bd55a06b8d4c34ebed1da",
		"vss2": "41f940d92a534dd8e940a4983d2a766bcb262373f9dc2006851e81fa3a1fa2f2",
	} {
		t.Run(snapshot, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := recovery.Copy(t.Context(), c.Disks[0].Device, path, nil); err != nil {
				t.Fatal(err)
			}
			inPlaceFile(t, path, []string{snapshot})
			vol, err := c.Volume(snapshot)
			if err != nil {
				t.Fatal(err)
			}
			s, err := vol.Keeper.Shadows.Open(vol.Shadow)
			if err != nil {
				t.Fatal(err)
			}
			after := openWritten(t, path)
			if v, err := vss.Read(after); err != nil || len(v.Copies) > 0 {
				t.Fatalf("there are shadow copies: %+v, %v", v, err)
			}
			h, buf, free := sha256.New(), make([]byte, 1<<20), int64(0)
			for off := int64(0); off < s.Size(); {
				p, err := s.Locate(off)
				if err != nil {
					t.Fatal(err)
				}
				b := buf[:min(p.Run, int64(len(buf)))]
				if _, err := after.ReadAt(b, off); err != nil {
					t.Fatal(err)
				}
				if p.Zero {
					free += int64(len(b))
					clear(b)
				}
				if at := int64(vss.CatalogField) - off; at >= 0 && at+8 <= int64(len(b)) {
					if _, err := s.ReadAt(b[at:at+8], vss.CatalogField); err != nil {
						t.Fatal(err)
					}
				}
				h.Write(b)
				off += int64(len(b))
			}
			if got := hex.EncodeToString(h.Sum(nil)); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			t.Logf("%d bytes are undefined", free)
		})
	}
}

package recovery_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// inPlace are recoveries in place, with the sum that the guest's kernel read of
// the snapshot ("" where volumes of that image have none that is whole).
var inPlace = []struct {
	name     string
	images   []string
	snapshot string
	volume   string
	sum      string
	discards []string
}{
	{"whole disk", []string{"lvm-o1-thick-4k"}, "vgo1/snap", "vgo1/root", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f", nil},
	{"wrapped text", []string{"lvm-o5-wrap"}, "8RfV23-8Il5-oMwk-DYpQ-ieLK-Y8TD-BfAKuq", "vgo1/root", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f", nil},
	{"first of two", []string{"lvm-o2-thick-gpt-crash"}, "vgo2/snap1", "vgo2/data", "853a2eff3d3a2ce0a15ea08ad22018d907c6121d6ff7a15ee3d71e81eb00ffb0", []string{"vgo2/snap2"}},
	{"second of two", []string{"lvm-o2-thick-gpt-crash"}, "vgo2/snap2", "vgo2/data", "d85dd205b2e651c526f42e8676d06631f56ca8432a0a561df48dc87bd6554a02", []string{"vgo2/snap1"}},
	{"thin", []string{"lvm-o3-thin"}, "vgo3/tsnap", "vgo3/tvol", "d827e7b2a10cdbe4c7c45bcd133c91a2efdc4f1ffeb4dee82f12cac22f8524c7", nil},
	{"striped over two disks", []string{"lvm-o4-a", "lvm-o4-b"}, "gac6wu-xU2u-QIlR-UpAV-ykKw-ArQR-tRezMV", "vgo4/str", "d5b583b019a19187dd4aa6a1b6b42055552eeb29900dbf73ade4ee54ba2bf522", []string{"vgo4/tiny"}},
}

// inPlaceOnce are too large to be interrupted at every write.
var inPlaceOnce = []struct {
	name     string
	images   []string
	snapshot string
	volume   string
	sum      string
	discards []string
}{
	{"raid1, linear afterwards", []string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, "vgm/r1", "vgm/r", "4c5edc731d972a631fd01792ba20e089a23c4b714cfae859f74d857d2333af88", []string{"vgm/r2"}},
	{"thin over two disks", []string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, "vgt/s3", "vgt/vol", "01c9e27a5cae64f99a337085315936c634a987df7d7f4eee2ab972c12fa79e47", nil},
}

func prepare(t testing.TB, m *machine, snapshot string) (*recovery.InPlace, error) {
	t.Helper()
	c, err := open.Probe(context.Background(), m.sources()...)
	if err != nil {
		t.Fatal(err)
	}
	return recovery.PrepareInPlace(context.Background(), c, recovery.InPlaceOptions{Snapshots: []string{snapshot}, DiscardOthers: true})
}

// TestInPlace: the volume becomes what the guest's kernel read of the snapshot,
// the snapshots go, nothing but what is listed is written, and not more than
// 1.02 times of what was preserved.
func TestInPlace(t *testing.T) {
	for _, tc := range slices.Concat(inPlace, inPlaceOnce) {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, tc.images...)
			before := make([][]byte, len(m.disks))
			for i, d := range m.disks {
				before[i] = bytes.Clone(d.stable)
			}
			p, err := prepare(t, m, tc.snapshot)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(p.Discarded, tc.discards) || p.Resumed || p.Done {
				t.Errorf("plan: %+v", p)
			}
			if m.writes != 0 {
				t.Fatal("the plan alone has written")
			}
			last := int64(0)
			if err := p.Run(context.Background(), func(n int64) { last = n }); err != nil {
				t.Fatal(err)
			}
			if last != p.Bytes() {
				t.Errorf("progress ended at %d of %d", last, p.Bytes())
			}
			vc := probe(t, m.sources()...)
			if got := sum(t, vc, tc.volume); got != tc.sum {
				t.Errorf("%s = %s, want %s", tc.volume, got, tc.sum)
			}
			for _, name := range append(tc.discards, tc.snapshot) {
				if _, err := vc.Volume(name); !errors.Is(err, open.ErrNotFound) {
					t.Errorf("%s: %v, want it gone", name, err)
				}
			}
			written, unsynced := int64(0), 0
			for i, d := range m.disks {
				unsynced += len(d.cache)
				outside := bytes.Clone(d.stable)
				for _, e := range p.Rewritten()[i] {
					copy(outside[e.Off:e.Off+e.Len], before[i][e.Off:])
				}
				if !bytes.Equal(outside, before[i]) {
					t.Errorf("disk %d changed outside of what is listed", i+1)
				}
				for _, e := range d.wrote {
					written += e.Len
				}
			}
			if unsynced > 0 {
				t.Errorf("%d sectors are not stable", unsynced)
			}
			if preserved := p.Volumes[0].Preserved; float64(written) > 1.02*float64(preserved) {
				t.Errorf("%d bytes were written for %d preserved ones", written, preserved)
			}
			// Once more: all is done already.
			again, err := prepare(t, m, tc.snapshot)
			if err != nil || !again.Done {
				t.Fatalf("a second time: %+v, %v", again, err)
			}
			if again.Volumes[0].Volume != tc.volume {
				t.Errorf("a second time: %+v", again.Volumes)
			}
			m.writes = 0
			if err := again.Run(context.Background(), nil); err != nil || m.writes != 0 {
				t.Errorf("a second run: %v, %d writes", err, m.writes)
			}
			covers(t, again.Rewritten(), m)
		})
	}
}

// covers wants every sector that differs from the split to be listed.
func covers(t *testing.T, lists [][]lun.Extent, m *machine) {
	t.Helper()
	for i, d := range m.disks {
		for s, old := range d.undo {
			at := s * sector
			if bytes.Equal(old, d.stable[at:at+sector]) {
				continue
			}
			k, ok := slices.BinarySearchFunc(lists[i], at, func(e lun.Extent, at int64) int { return cmp.Compare(e.Off, at) })
			if !ok {
				k--
			}
			if k < 0 || lists[i][k].Off+lists[i][k].Len < at+sector {
				t.Errorf("disk %d: byte %d was rewritten and is not listed", i+1, at)
				return
			}
		}
	}
}

// TestInPlaceInterruptedAtEveryWrite cuts the power in every write in turn. The
// view of what is left is the recovered volume, a second run ends it, and its
// list names all that either run has changed. Of the writes of
// volumes' chunks, a sixteenth has to do unless CLEAVE_EVERY_WRITE is set, as the
// lab does.
func TestInPlaceInterruptedAtEveryWrite(t *testing.T) {
	for _, tc := range inPlace {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, tc.images...)
			dirty := content(t, volume(t, m, tc.volume))
			p, err := prepare(t, m, tc.snapshot)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.Run(context.Background(), nil); err != nil {
				t.Fatal(err)
			}
			total := m.writes
			want := content(t, volume(t, m, tc.volume))
			if h := sha256.Sum256(want); hex.EncodeToString(h[:]) != tc.sum {
				t.Fatal("uninterrupted, it is not the snapshot")
			}
			// What is the same in split and snapshot can only go wrong by a write
			// there, which covers would see.
			same := likeness{want: want, places: differing(dirty, want)}
			step := total/16 + 1
			if os.Getenv("CLEAVE_EVERY_WRITE") != "" {
				step = 1
			}
			for n := 1; n <= total; n++ {
				if n > 6 && n < total-6 && n%step != 0 {
					continue
				}
				m.reset()
				m.cutAt, m.chance = n, rand.New(rand.NewPCG(1, uint64(n)))
				if p, err = prepare(t, m, tc.snapshot); err != nil {
					t.Fatal(err)
				}
				if err := p.Run(context.Background(), nil); !errors.Is(err, errCut) {
					t.Fatalf("power cut in write %d of %d: %v", n, total, err)
				}
				m.restart()
				if p, err = prepare(t, m, tc.snapshot); err != nil {
					t.Fatalf("after a power cut in write %d of %d: %v", n, total, err)
				}
				if !p.Done {
					c, err := open.Probe(context.Background(), m.sources()...)
					if err != nil {
						t.Fatal(err)
					}
					v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{Snapshots: []string{tc.snapshot}, Dir: t.TempDir()})
					if err != nil {
						t.Fatalf("view after a power cut in write %d of %d: %v", n, total, err)
					}
					var seen []open.Source
					for _, d := range v.Devices {
						seen = append(seen, open.Source{Name: "view", Device: d})
					}
					if !same.as(t, opened(t, seen, tc.volume)) {
						t.Errorf("after a power cut in write %d of %d the view is wrong", n, total)
					}
					if err := v.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if err := p.Run(context.Background(), nil); err != nil {
					t.Fatalf("second run after a power cut in write %d of %d: %v", n, total, err)
				}
				if !same.as(t, volume(t, m, tc.volume)) {
					t.Errorf("resumed after a power cut in write %d of %d, the volume is wrong", n, total)
				}
				covers(t, p.Rewritten(), m)
				if t.Failed() {
					return
				}
			}
			t.Logf("%d writes", total)
		})
	}
}

func volume(t testing.TB, m *machine, name string) lun.Device { return opened(t, m.sources(), name) }

func opened(t testing.TB, s []open.Source, name string) lun.Device {
	t.Helper()
	v, err := probe(t, s...).Volume(name)
	if err != nil {
		t.Fatal(err)
	}
	d, err := v.Open()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// likeness compares devices with what they should hold, where it matters.
type likeness struct {
	want   []byte
	places []lun.Extent
}

func (l likeness) as(t testing.TB, d lun.Device) bool {
	t.Helper()
	buf := make([]byte, 1<<20)
	for _, e := range l.places {
		for off := e.Off; off < e.Off+e.Len; off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), e.Off+e.Len-off)]
			if _, err := d.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p, l.want[off:off+int64(len(p))]) {
				return false
			}
		}
	}
	return true
}

// differing lists where a and b, of one length, differ.
func differing(a, b []byte) []lun.Extent {
	var out []lun.Extent
	for off := 0; off < len(a); off += 4096 {
		end := min(off+4096, len(a))
		switch k := len(out) - 1; {
		case bytes.Equal(a[off:end], b[off:end]):
		case k >= 0 && out[k].Off+out[k].Len == int64(off):
			out[k].Len += int64(end - off)
		default:
			out = append(out, lun.Extent{Off: int64(off), Len: int64(end - off)})
		}
	}
	return out
}

package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/qcow2"
)

// memory is a device that counts its writes.
type memory struct {
	b      []byte
	writes int
}

func (m *memory) Size() int64 { return int64(len(m.b)) }
func (m *memory) Sync() error { return nil }
func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	return copy(p, m.b[off:]), nil
}
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), m.Size()); err != nil {
		return 0, err
	}
	m.writes++
	return copy(m.b[off:], p), nil
}

// sample is a disk of 1 MiB with clusters of 4 KiB, the first two of which
// hold data, made by hand: header, L1, L2, data, data, refcount table, refcount
// block, in this order, one cluster each. TestSample has qemu-img look at it.
func sample() []byte {
	const cluster = 4096
	b := make([]byte, 7*cluster)
	put32 := func(off int, v uint32) { binary.BigEndian.PutUint32(b[off:], v) }
	put64 := func(off int, v uint64) { binary.BigEndian.PutUint64(b[off:], v) }
	copy(b, "QFI\xfb")
	put32(4, 3)
	put32(20, 12)
	put64(24, 1<<20)
	put32(36, 1)
	put64(40, 1*cluster)
	put64(48, 5*cluster)
	put32(56, 1)
	put32(96, 4)
	put32(100, 104)
	put64(1*cluster, 1<<63|2*cluster)
	put64(2*cluster, 1<<63|3*cluster)
	put64(2*cluster+8, 1<<63|4*cluster)
	for i := range 2 * cluster {
		b[3*cluster+i] = byte(i/512) + 1
	}
	put64(5*cluster, 6*cluster)
	for i := range 7 {
		b[6*cluster+2*i+1] = 1
	}
	return b
}

func set64(off int, v uint64) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint64(b[off:], v); return b }
}

func set32(off int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { binary.BigEndian.PutUint32(b[off:], v); return b }
}

func cut(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }

func both(f ...func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		for _, g := range f {
			b = g(b)
		}
		return b
	}
}

// TestSample: QEMU agrees with what is built by hand here.
func TestSample(t *testing.T) {
	l := newLab(t)
	if err := os.WriteFile(filepath.Join(l.dir, "d.qcow2"), sample(), 0o644); err != nil {
		t.Fatal(err)
	}
	l.img("check -q -f qcow2 d.qcow2")
	l.compare(l.mustOpen("d.qcow2", vdisk.Options{}), l.raw("d.qcow2", ""))
}

// TestDamage: each damage is named by its field, nothing is written, and where
// opening does not see it, reading does.
func TestDamage(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func([]byte) []byte
		field  string // of the FormatError; "" for ErrNotFormat
	}{
		{"empty", cut(0), ""},
		{"other magic", set32(0, 0x51464900), ""},
		{"cut in the header", cut(60), "header"},
		{"cut in the header of version 3", cut(90), "header"},
		{"version 1", set32(4, 1), "version"},
		{"version 4", set32(4, 4), "version"},
		{"unknown feature", set64(72, 1<<17), "incompatible_features"},
		{"marked as corrupt", set64(72, 2), "incompatible_features"},
		{"encrypted by AES", set32(32, 1), "crypt_method"},
		{"encrypted by LUKS", set32(32, 2), "crypt_method"},
		{"unknown encryption", set32(32, 3), "crypt_method"},
		{"tiny clusters", set32(20, 8), "cluster_bits"},
		{"huge clusters", set32(20, 60), "cluster_bits"},
		{"small clusters with subclusters", set64(72, 1<<4), "cluster_bits"},
		{"huge disk", set64(24, 1<<63-1), "size"},
		{"negative size", set64(24, 1<<63), "size"},
		{"L1 too small", set64(24, 1<<40), "l1_size"},
		{"L1 huge", set32(36, 1<<31), "l1_size"},
		{"L1 beyond the file", set64(40, 1<<40), "l1_table_offset"},
		{"L1 far beyond the file", set64(40, 1<<63), "l1_table_offset"},
		{"L1 not aligned", set64(40, 4097), "l1_table_offset"},
		{"L1 in the header", set64(40, 0), "l1_table_offset"},
		{"refcount order", set32(96, 7), "refcount_order"},
		{"short header", set32(100, 96), "header_length"},
		{"long header", set32(100, 8192), "header_length"},
		{"odd header", set32(100, 105), "header_length"},
		{"compression without its feature", both(set32(100, 112), set32(104, 1<<24)), "compression_type"},
		{"feature without compression", set64(72, 1<<3), "compression_type"},
		{"unknown compression", both(set64(72, 1<<3), set32(100, 112), set32(104, 9<<24)), "compression_type"},
		{"external data without a name", set64(72, 1<<2), "incompatible_features"},
		{"long backing name", both(set64(8, 200), set32(16, 1024)), "backing_file_size"},
		{"backing name beyond the cluster", both(set64(8, 4000), set32(16, 200)), "backing_file_offset"},
		{"backing name far away", both(set64(8, 1<<63), set32(16, 20)), "backing_file_offset"},
		{"endless extension", both(set32(104, 0xE2792ACA), set32(108, 1<<31)), "header extension length"},

		{"L2 beyond the file", set64(4096, 1<<63|1<<40), "L2 entry"},
		{"L2 not aligned", set64(4096, 1<<63|2*4096+512), "L1 entry"},
		{"L1 reserved bits", set64(4096, 1<<63|1<<57|2*4096), "L1 entry"},
		{"L2 reserved bits", set64(8192, 1<<63|1<<60|3*4096), "L2 entry"},
		{"data not aligned", set64(8192, 1<<63|3*4096+512), "L2 entry"},
		{"data beyond the file", set64(8192, 1<<63|1<<40), "L2 entry"},
		{"zero flag in version 2", both(set32(4, 2), set64(8192, 1<<63|3*4096|1)), "L2 entry"},
		{"compressed beyond the file", set64(8192, 1<<62|1<<40), "compressed cluster"},
		{"compressed nonsense", set64(8192, 1<<62|6*4096+100), "compressed cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &memory{b: c.damage(sample())}
			d, err := qcow2.Open(m, vdisk.Options{})
			if err == nil {
				defer d.Close()
				_, err = d.ReadAt(make([]byte, 4096), 0)
			}
			var fe *lun.FormatError
			switch {
			case m.writes != 0:
				t.Errorf("%d writes", m.writes)
			case c.field == "":
				if !errors.Is(err, lun.ErrNotFormat) {
					t.Errorf("%v, want ErrNotFormat", err)
				}
			case !errors.As(err, &fe) || fe.Field != c.field || fe.Format != "qcow2":
				t.Errorf("%v, want one about %s", err, c.field)
			}
		})
	}
}

// TestReadButNotWritten: what is damaged so that it can still be read.
func TestReadButNotWritten(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func([]byte) []byte
		want   error  // nil: a FormatError about field
		field  string // of it
		warned bool
	}{
		{"dirty", set64(72, 1), lun.ErrReadOnly, "", true},
		{"refcount table beyond the file", set64(48, 1<<40), lun.ErrReadOnly, "", true},
		{"refcount table not aligned", set64(48, 5*4096+8), lun.ErrReadOnly, "", true},
		{"huge refcount table", set32(56, 1<<31), lun.ErrReadOnly, "", true},
		{"snapshot table beyond the file", both(set32(60, 1), set64(64, 1<<40)), nil, "", true},
		{"too many snapshots", set32(60, 1<<31), nil, "", true},
		{"not COPIED", set64(8192, 3*4096), vdisk.ErrNotAllocated, "", false},
		{"L2 not COPIED", set64(4096, 2*4096), vdisk.ErrNotAllocated, "", false},
		{"refcount 2", set32(6*4096+4, 1<<16|2), vdisk.ErrNotAllocated, "", false},
		{"refcount 0", set64(5*4096, 0), vdisk.ErrNotAllocated, "", false},
		{"refcount block beyond the file", set64(5*4096, 1<<40), nil, "refcount table entry", false},
		{"data in the header", both(set64(4096, 1<<63|2*4096), set64(8192+8, 1<<63|5*4096)), nil, "data cluster", false},
		{"data in the L2 table", set64(8192+8, 1<<63|2*4096), nil, "data cluster", false},
		{"data in the refcount block", set64(8192+8, 1<<63|6*4096), nil, "data cluster", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := &memory{b: c.damage(sample())}
			d, err := qcow2.Open(m, vdisk.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if got := len(d.Info().Warnings) > 0; got != c.warned {
				t.Errorf("warnings %v", d.Info().Warnings)
			}
			b := make([]byte, 8192)
			if _, err := d.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
			before := bytes.Clone(m.b)
			_, err = d.WriteAt(b, 0)
			var fe *lun.FormatError
			switch {
			case c.want != nil && !errors.Is(err, c.want):
				t.Errorf("write: %v, want %v", err, c.want)
			case c.field != "" && (!errors.As(err, &fe) || fe.Field != c.field):
				t.Errorf("write: %v, want an error about %s", err, c.field)
			case c.want == nil && c.field == "" && err != nil:
				t.Errorf("write: %v", err)
			case err != nil && (m.writes > 0 || !bytes.Equal(m.b, before)):
				t.Errorf("%d writes in spite of %v", m.writes, err)
			}
			if i := d.Info(); i.Dirty != (c.name == "dirty") {
				t.Errorf("the flag is wrong in %+v", i)
			}
		})
	}
}

// TestAutoclear: the first write drops dirty bitmaps, and what else is not
// known; it keeps that the external data file is the raw disk.
func TestAutoclear(t *testing.T) {
	m := &memory{b: set64(88, 1|2|1<<40)(sample())}
	d, err := qcow2.Open(m, vdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.WriteAt(make([]byte, 512), 1<<19); !errors.Is(err, vdisk.ErrNotAllocated) || m.writes != 0 {
		t.Errorf("a refused write: %v, %d writes", err, m.writes)
	}
	for i := range 2 {
		if _, err := d.WriteAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
		if got := binary.BigEndian.Uint64(m.b[88:]); got != 2 || m.writes != 2+i {
			t.Errorf("autoclear features %#x after %d writes", got, m.writes)
		}
	}
}

// TestHugeClaims: a disk of 2 EiB in a file of 64 MiB, with one L2 table for
// all of it, costs no more than another to open, and its map can be left.
func TestHugeClaims(t *testing.T) {
	b := sample()
	big := make([]byte, 64<<20)
	copy(big, b)
	set32(20, 21)(big)       // clusters of 2 MiB
	set64(24, 1<<61)(big)    // size
	set32(36, 4<<20)(big)    // L1 entries
	set64(40, 2<<20)(big)    // L1 of 32 MiB
	set64(48, 40<<20)(big)   // refcounts
	for i := range 4 << 20 { // all of it in the last cluster but one
		set64(2<<20+8*i, 1<<63|60<<20)(big)
	}
	stop := errors.New("stop")
	if got := testing.AllocsPerRun(1, func() {
		d, err := qcow2.Open(&memory{b: big}, vdisk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		calls := 0
		err = d.Extents(0, d.Size(), func(lun.Extent) error {
			if calls++; calls == 10 {
				return stop
			}
			return nil
		})
		if err != stop {
			t.Errorf("the map: %v", err)
		}
	}); got > 50000 {
		t.Errorf("%.0f allocations", got)
	}
}

// FuzzOpen: no bytes make it panic, hang, write where it should not, or answer
// an error that says nothing of the format. The disk is its own parent.
func FuzzOpen(f *testing.F) {
	f.Add(sample())
	small, err := filepath.Glob(filepath.Join("testdata", "*.qcow2"))
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range small {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			t.Skip()
		}
		m := &memory{b: bytes.Clone(b)}
		o := vdisk.Options{Depth: 3, Resolver: vdisk.ResolverFunc(func(string, bool) (lun.Device, error) { return &memory{b: b}, nil })}
		d, err := qcow2.Open(m, o)
		known(t, err)
		if err != nil {
			return
		}
		size := d.Size()
		buf := make([]byte, 70000)
		for _, off := range []int64{0, 65000, size / 2, size - 70000} {
			if off < 0 || off > size {
				continue
			}
			p := buf[:min(int64(len(buf)), size-off)]
			_, err := d.ReadAt(p, off)
			known(t, err)
			calls := 0
			known(t, d.Extents(off, size-off, func(e lun.Extent) error {
				if calls++; calls > 20 {
					return io.EOF
				}
				return nil
			}))
			w := d.Writable(off, int64(len(p)))
			known(t, w)
			before := bytes.Clone(m.b)
			if _, err := d.WriteAt(p, off); err == nil && w != nil || err != nil && !bytes.Equal(before, m.b) {
				t.Errorf("write at %d: %v, though Writable says %v", off, err, w)
			}
		}
		for _, s := range d.Info().Snapshots {
			o.Snapshot = s.Name
			if s.Name == "" {
				continue
			}
			sd, err := qcow2.Open(m, o)
			if err == nil {
				_, err = sd.ReadAt(buf[:min(int64(len(buf)), sd.Size())], 0)
			}
			known(t, err)
		}
	})
}

// known fails for errors that an operator could do nothing with.
func known(t *testing.T, err error) {
	t.Helper()
	var fe *lun.FormatError
	for _, e := range []error{lun.ErrNotFormat, lun.ErrReadOnly, vdisk.ErrNotAllocated, vdisk.ErrOtherFile, vdisk.ErrDepth, vdisk.ErrNoSnapshot, io.EOF} {
		if errors.Is(err, e) {
			return
		}
	}
	if err != nil && !errors.As(err, &fe) {
		t.Errorf("an error of no kind: %v", err)
	}
}

// TestAtOnce: readers and writers together, for the race detector.
func TestAtOnce(t *testing.T) {
	m := &memory{b: set64(88, 1)(sample())}
	d, err := qcow2.Open(m, vdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			b := make([]byte, 512)
			for j := range 50 {
				var err error
				if i == 0 {
					_, err = d.WriteAt(b, int64(j%8)*512)
				} else {
					_, err = d.ReadAt(b, int64(8+i*j%200)*512)
				}
				if err == nil {
					err = d.Extents(0, d.Size(), func(lun.Extent) error { return nil })
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
}

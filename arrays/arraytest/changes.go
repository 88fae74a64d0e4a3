package arraytest

import (
	"bytes"
	"io"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
)

// content reads all of a snapshot.
func content(t *testing.T, a *arrays.Array, s driver.SnapshotID) []byte {
	t.Helper()
	d, err := a.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if c, ok := d.(io.Closer); ok {
		defer c.Close()
	}
	return readAll(t, d, d.Size())
}

func readAll(t *testing.T, d io.ReaderAt, size int64) []byte {
	t.Helper()
	p := make([]byte, size)
	if n, err := d.ReadAt(p, 0); int64(n) != size {
		t.Fatalf("reading %d bytes: %d, %v", size, n, err)
	}
	return p
}

// write is one write of a test, of bytes that were not there before.
type write struct {
	off int64
	n   int
}

// testChanges compares what is said to have changed with what did, byte for
// byte, between two snapshots where the array can keep two of a volume, and
// between each and now. What was not written to is not reported, beyond what
// the granularity explains.
func testChanges(t *testing.T, l *Lab) {
	a, v := l.array(), l.Volumes[0]
	seed := byte(0)
	put := func(ws ...write) []write {
		t.Helper()
		seed++
		for _, w := range ws {
			if _, err := v.Device.WriteAt(bytes.Repeat([]byte{seed}, w.n), w.off); err != nil {
				t.Fatal(err)
			}
		}
		return ws
	}
	point := func(tag driver.Tag) (s driver.SnapshotID, ok bool) {
		t.Helper()
		err := a.Prepare(t.Context(), []driver.VolumeID{v.ID}, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true})
		if k := arrays.KindOf(err); k == driver.Busy || k == driver.NotSynchronized {
			return "", false // one at a time
		} else if err != nil {
			t.Fatal(err)
		}
		return split(t, a, tag, []driver.VolumeID{v.ID})[0].ID, true
	}
	put(write{0, 1 << 20}, write{3 << 20, 512})
	first, _ := point("first")
	early := put(write{0, 512}, write{1<<20 + 65536 - 512, 1024}, write{2 << 20, 200 << 10})
	second, two := point("second")
	late := put(write{1024, 512}, write{3<<20 + 4096, 4096})
	if l.Restart != nil {
		l.Restart(t)
		a, v = l.array(), l.Volumes[0]
		late = append(late, put(write{MinVolume - 512, 512})...)
	}
	now := readAll(t, v.Device, v.Device.Size())
	was := content(t, a, first)
	all := append(early, late...)
	compare(t, a, v.ID, first, "", was, now, all)
	compare(t, a, v.ID, "", first, now, was, all)
	compare(t, a, v.ID, first, first, was, was, nil)
	compare(t, a, v.ID, "", "", now, now, nil)
	giveBackAll := []driver.SnapshotID{first}
	if two {
		between := content(t, a, second)
		compare(t, a, v.ID, first, second, was, between, early)
		compare(t, a, v.ID, second, "", between, now, late)
		giveBackAll = append(giveBackAll, second)
	}
	_, err := a.Changes(t.Context(), v.ID, "no-such-snapshot", "")
	wantKind(t, "Changes since an unknown snapshot", err, driver.NotFound)
	_, err = a.Changes(t.Context(), "no-such-volume", first, "")
	wantKind(t, "Changes of an unknown volume", err, driver.NotFound)
	for _, s := range giveBackAll {
		if err := a.GiveBack(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}

// compare checks Changes against the two contents, and against the writes that
// made them differ.
func compare(t *testing.T, a *arrays.Array, v driver.VolumeID, from, to driver.SnapshotID, x, y []byte, ws []write) {
	t.Helper()
	c, err := a.Changes(t.Context(), v, from, to)
	if arrays.KindOf(err) == driver.NotSupported {
		return // it says that it doesn't know
	} else if err != nil {
		t.Fatalf("Changes from %q to %q: %v", from, to, err)
	}
	said := make([]bool, max(len(x), len(y)))
	for _, r := range c.Regions {
		if r.Off+r.Len > int64(len(said)) {
			t.Fatalf("from %q to %q: region %+v lies beyond the end", from, to, r)
		}
		for i := r.Off; i < r.Off+r.Len; i++ {
			said[i] = true
		}
	}
	may := make([]bool, len(said))
	for _, w := range ws {
		end := (w.off + int64(w.n) + c.Granularity - 1) / c.Granularity * c.Granularity
		for i := w.off / c.Granularity * c.Granularity; i < min(end, int64(len(may))); i++ {
			may[i] = true
		}
	}
	for i := range said {
		differs := i >= len(x) || i >= len(y) || x[i] != y[i]
		if differs && !said[i] {
			t.Fatalf("from %q to %q: byte %d differs and is in none of %d regions", from, to, i, len(c.Regions))
		}
		if said[i] && !may[i] {
			t.Fatalf("from %q to %q: byte %d is said to have changed; nothing was written within %d bytes of it", from, to, i, c.Granularity)
		}
	}
}

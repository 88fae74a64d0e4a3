package arraytest

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// testRewrite writes to a snapshot: alone, seen by whoever opens it later, told
// by Changes, and gone with the snapshot.
func testRewrite(t *testing.T, l *Lab) {
	a, v := l.array(), l.Volumes[0]
	vs := []driver.VolumeID{v.ID}
	_, err := a.Rewrite(t.Context(), "no-such-snapshot")
	wantKind(t, "Rewrite of an unknown snapshot", err, driver.NotFound)
	fill(t, v.Device, 0, 1<<20, 1)
	prepare(t, a, "rewrite", vs)
	id := split(t, a, "rewrite", vs)[0].ID
	was := readAll(t, v.Device, v.Device.Size())

	d := rewrite(t, a, id)
	_, err = a.Open(t.Context(), id)
	wantKind(t, "Open of what is being rewritten", err, driver.Busy)
	wantKind(t, "Delete of what is being rewritten", a.Delete(t.Context(), id), driver.Busy)
	if a.CanExpose() {
		_, err := a.Expose(t.Context(), id, driver.ExposeOptions{Initiators: []string{l.Initiator}})
		wantKind(t, "Expose of what is being rewritten", err, driver.Busy)
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Rewrite(soon, id); err == nil {
		t.Error("two rewrite a snapshot at once")
	}
	fill(t, d, 256<<10, 8<<10, 9)
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	// Who comes next waits for the one before.
	type opened struct {
		d   lun.Device
		err error
	}
	next := make(chan opened, 1)
	go func() {
		d, err := a.Rewrite(t.Context(), id)
		next <- opened{d, err}
	}()
	shut(t, d)
	second := <-next
	if second.err != nil {
		t.Fatalf("Rewrite after another: %v", second.err)
	}
	shut(t, second.d)

	want := bytes.Clone(was)
	copy(want[256<<10:], bytes.Repeat([]byte{9}, 8<<10))
	if !bytes.Equal(content(t, a, id), want) {
		t.Error("the snapshot does not hold what was written to it")
	}
	if !bytes.Equal(readAll(t, v.Device, v.Device.Size()), was) {
		t.Error("a write to the snapshot reached its volume")
	}
	ss, err := a.Lookup(t.Context(), "rewrite")
	if err != nil || len(ss) != 1 || ss[0].State != driver.Skewed {
		t.Errorf("after it was rewritten: %+v, %v", ss, err)
	}
	if a.CanTrackChanges() {
		c, err := a.Changes(t.Context(), v.ID, id, "")
		if err != nil {
			t.Fatal(err)
		}
		if !covered(c, 256<<10, 8<<10) {
			t.Errorf("what was written to the snapshot is not among its changes: %+v", c)
		}
	}
	open, err := a.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Rewrite(t.Context(), id)
	wantKind(t, "Rewrite of what is open", err, driver.Busy)
	shut(t, open)
	shut(t, rewrite(t, a, id)) // once more
	if err := a.GiveBack(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	prepare(t, a, "rewrite-2", vs) // the mirror is whole again
	again := split(t, a, "rewrite-2", vs)
	if !bytes.Equal(content(t, a, again[0].ID), was) {
		t.Error("what was written to a snapshot came back with its mirror")
	}
	if err := a.GiveBack(t.Context(), again[0].ID); err != nil {
		t.Fatal(err)
	}
}

func rewrite(t *testing.T, a *arrays.Array, id driver.SnapshotID) lun.Device {
	t.Helper()
	d, err := a.Rewrite(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func shut(t *testing.T, d lun.Device) {
	t.Helper()
	if c, ok := d.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// covered reports whether n bytes from off are within one region.
func covered(c driver.Changes, off, n int64) bool {
	for _, r := range c.Regions {
		if r.Off <= off && off+n <= r.Off+r.Len {
			return true
		}
	}
	return false
}

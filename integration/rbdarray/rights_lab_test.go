//go:build lab

package rbdarray

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/rbd"
	"github.com/cleave-san/cleave/arrays/rbd/cephlab"
)

func ceph(t *testing.T, program, conf string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, append([]string{"-c", conf}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", program, args, err, out)
	}
	return string(out)
}

func as(t *testing.T, conf, user string) *rbd.Driver {
	t.Helper()
	d, err := rbd.New(rbd.Options{Conf: conf, User: user, Pools: []string{cephlab.Pool}})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestRights is about capabilities, by a Ceph's own cephx: what Check says of each,
// that it changes nothing, and that the least documented ones do for the life of a
// snapshot of one image, and of two at one instant.
func TestRights(t *testing.T) {
	conf := cephlab.Start(t)
	one, two := driver.VolumeID(cephlab.Pool+"/one"), driver.VolumeID(cephlab.Pool+"/two")
	for _, v := range []driver.VolumeID{one, two} {
		ceph(t, "rbd", conf, "create", "--size=4M", string(v))
	}
	check := func(t *testing.T, d *rbd.Driver, next ...driver.VolumeID) func(string, driver.Result, string) {
		t.Helper()
		fs, err := d.Check(t.Context(), next)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]driver.Finding{}
		for _, f := range fs {
			t.Logf("%-10s %-28s %-8s %s", f.Area, f.Check, f.Result, f.Detail)
			found[f.Check] = f
		}
		return func(check string, r driver.Result, says string) {
			t.Helper()
			if f, ok := found[check]; !ok || f.Result != r || !strings.Contains(f.Detail, says) {
				t.Errorf("%s: %s %q, want %s with %q", check, f.Result, f.Detail, r, says)
			}
		}
	}
	before := ceph(t, "rbd", conf, "info", string(one)) + ceph(t, "rbd", conf, "image-meta", "ls", string(one))
	t.Run("Least", func(t *testing.T) {
		found := check(t, as(t, conf, cephlab.User), one, two)
		found("read pool rbd", driver.OK, "2 images")
		found("write to image rbd/one", driver.OK, "allowed")
		found("image rbd/one", driver.OK, "group snapshots")
		found("all of them at one instant", driver.OK, "group snapshot")
		found("snapshots of image rbd/one", driver.OK, "0 snapshots used, without a limit, the next set needs 1")
		found("pool rbd", driver.OK, "left")
		found("reading on this host", driver.OK, "qemu-storage-daemon")
	})
	t.Run("Reader", func(t *testing.T) {
		found := check(t, as(t, conf, cephlab.Reader), one)
		found("read pool rbd", driver.OK, "allowed")
		found("write to image rbd/one", driver.Failed, "not permitted")
	})
	t.Run("OfAnotherPool", func(t *testing.T) {
		check(t, as(t, conf, cephlab.Nobody))("read pool rbd", driver.Failed, "not permitted")
	})
	if after := ceph(t, "rbd", conf, "info", string(one)) + ceph(t, "rbd", conf, "image-meta", "ls", string(one)); after != before {
		t.Errorf("checks have changed something:\n%s\nbefore:\n%s", after, before)
	}
	t.Run("Limit", func(t *testing.T) {
		ceph(t, "rbd", conf, "snap", "limit", "set", string(one), "--limit", "1")
		ceph(t, "rbd", conf, "snap", "create", "--no-progress", string(one)+"@mine")
		check(t, as(t, conf, cephlab.User), one)("snapshots of image rbd/one", driver.Failed, "1 of 1 snapshots used, 0 left, the next set needs 1")
		ceph(t, "rbd", conf, "snap", "rm", "--no-progress", string(one)+"@mine")
		ceph(t, "rbd", conf, "snap", "limit", "clear", string(one))
	})
	t.Run("Life", func(t *testing.T) {
		d := as(t, conf, cephlab.User)
		for n, vs := range [][]driver.VolumeID{{one}, {one, two}} {
			tag := driver.Tag(fmt.Sprintf("life-%d", n))
			if err := d.Prepare(t.Context(), vs, driver.PrepareOptions{Tag: tag}); err != nil {
				t.Fatal(err)
			}
			ss, err := d.SplitGroup(t.Context(), tag, vs)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range ss {
				x, err := d.Open(t.Context(), s.ID)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := x.ReadAt(make([]byte, 4096), 0); err != nil {
					t.Error(err)
				}
				x.(interface{ Close() error }).Close()
				if err := d.Delete(t.Context(), s.ID); err != nil {
					t.Error(err)
				}
			}
			if left, err := d.Lookup(t.Context(), tag); err != nil || len(left) > 0 {
				t.Errorf("it left %v, %v", left, err)
			}
		}
	})
	t.Run("WithoutMonitors", func(t *testing.T) {
		d, err := rbd.New(rbd.Options{Conf: cephlab.Deaf(t, conf), Pools: []string{cephlab.Pool}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		_, err = d.Check(ctx, nil)
		if took := time.Since(began); d.Kind(err) != driver.Unreachable || took > 15*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

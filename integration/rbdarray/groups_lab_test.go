//go:build lab

package rbdarray

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/arraytest"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/rbd"
	"github.com/cleave-san/cleave/arrays/rbd/cephlab"
	"github.com/cleave-san/cleave/lun"
)

// cluster is a small Ceph, as its administrator has it.
type cluster struct {
	*testing.T
	conf string
	n    int
}

// rbd runs the command, which has to succeed.
func (c *cluster) rbd(args ...string) string {
	c.Helper()
	out, err := exec.Command("rbd", append([]string{"-c", c.conf}, args...)...).CombinedOutput()
	if err != nil {
		c.Fatalf("rbd %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// images makes new ones, in a pool or a namespace of it.
func (c *cluster) images(in string, n int, options ...string) (ids []driver.VolumeID) {
	c.Helper()
	for range n {
		c.n++
		id := fmt.Sprintf("%s/g%d", in, c.n)
		c.rbd(append([]string{"create", "--size=4M", id}, options...)...)
		ids = append(ids, driver.VolumeID(id))
	}
	return ids
}

func (c *cluster) driver(o rbd.Options) *rbd.Driver {
	c.Helper()
	o.Conf = c.conf
	o.Pools = append(o.Pools, cephlab.Pool)
	d, err := rbd.New(o)
	c.check(err)
	return d
}

func (c *cluster) check(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c *cluster) wantKind(err error, k driver.Kind, what string) {
	c.Helper()
	if got := arrays.KindOf(err); err == nil || got != k {
		c.Errorf("%s: %v, of kind %v, want %v", what, err, got, k)
	} else {
		c.Log(err)
	}
}

// fill writes an image full of one byte.
func (c *cluster) fill(d *rbd.Driver, v driver.VolumeID, b byte) {
	c.Helper()
	x, err := d.OpenImage(c.Context(), v)
	c.check(err)
	_, err = x.WriteAt(bytes.Repeat([]byte{b}, int(x.Size())), 0)
	c.check(err)
	c.check(x.(io.Closer).Close())
}

// wantFull reads all of a device and closes it.
func (c *cluster) wantFull(what string, d lun.Device, err error, b byte) {
	c.Helper()
	c.check(err)
	got := make([]byte, d.Size())
	_, err = d.ReadAt(got, 0)
	c.check(err)
	c.check(d.(io.Closer).Close())
	if !bytes.Equal(got, bytes.Repeat([]byte{b}, len(got))) {
		c.Errorf("%s doesn't hold %d: %x …", what, b, got[:16])
	}
}

// wantNothingLeft wants the images as they were made, with nothing but the
// snapshots named, and no group, view or metadata of Cleave's.
func (c *cluster) wantNothingLeft(ids ...driver.VolumeID) {
	c.Helper()
	for _, id := range ids {
		if out := c.rbd("snap", "ls", "--all", string(id)); out != "" {
			c.Errorf("snapshots left on %s: %s", id, out)
		}
		if out := c.rbd("image-meta", "ls", string(id)); strings.Contains(out, "cleave") {
			c.Errorf("metadata left on %s: %s", id, out)
		}
		in := string(id[:strings.LastIndex(string(id), "/")])
		for _, list := range [][]string{{"ls"}, {"group", "ls"}, {"trash", "ls", "--all"}} {
			if out := c.rbd(append(list, in)...); strings.Contains(out, "cleave-") {
				c.Errorf("left in %s: %s", in, out)
			}
		}
	}
}

// on runs a test as c does.
func (c *cluster) on(name string, fn func(*cluster)) {
	c.Run(name, func(t *testing.T) {
		x := &cluster{t, c.conf, c.n}
		fn(x)
		c.n = x.n
	})
}

// TestGroups splits several images at one instant.
func TestGroups(t *testing.T) {
	c := &cluster{T: t, conf: cephlab.Start(t)}
	c.rbd("namespace", "create", cephlab.Pool+"/ns")
	c.on("Read", func(c *cluster) { c.readMembers(cephlab.Pool, c.images(cephlab.Pool, 3)) })
	c.on("Namespace", func(c *cluster) { c.readMembers(cephlab.Pool+"/ns", c.images(cephlab.Pool+"/ns", 2)) })
	c.on("Refused", (*cluster).refused)
	c.on("OwnGroup", (*cluster).ownGroup)
	c.on("TwoSets", (*cluster).twoSets)
	c.on("Held", (*cluster).held)
	c.on("WriteOrder", (*cluster).orderOfFour)
	c.on("Crash", (*cluster).crash)
}

// readMembers reads, reverts to and breaks off members of a group snapshot, of images
// that have snapshots of somebody else.
func (c *cluster) readMembers(pool string, ids []driver.VolumeID) {
	d := c.driver(rbd.Options{Pools: []string{pool}})
	ctx := c.Context()
	for i, v := range ids {
		c.fill(d, v, byte(i+1))
		c.rbd("snap", "create", string(v)+"@others")
	}
	ss, err := d.SplitGroup(ctx, "read", ids)
	c.check(err)
	for i, v := range ids {
		c.fill(d, v, byte(100+i))
		if ss[i].Group == "" || ss[i].Group != ss[0].Group || ss[i].At.IsZero() || time.Since(ss[i].At).Abs() > time.Minute {
			c.Errorf("snapshot %+v", ss[i])
		}
	}
	for i, s := range ss {
		x, err := d.Open(ctx, s.ID)
		c.check(err)
		c.wantKind(d.Delete(ctx, s.ID), driver.Busy, "Delete of what is open")
		c.wantFull("the member", x, nil, byte(i+1))
		x, err = d.Open(ctx, s.ID)
		c.wantFull("the member again", x, err, byte(i+1))
	}
	_, err = d.Changes(ctx, ids[0], ss[0].ID, "")
	c.wantKind(err, driver.NotSupported, "Changes since a member")

	safe, err := d.Revert(ctx, ss[0].ID)
	c.check(err)
	again, err := d.Revert(ctx, ss[0].ID)
	c.check(err)
	if safe.ID != again.ID {
		c.Errorf("safe points %s and %s", safe.ID, again.ID)
	}
	x, err := d.OpenImage(ctx, ids[0])
	c.wantFull("the image that was put back", x, err, 1)
	x, err = d.Open(ctx, safe.ID)
	c.wantFull("its safe point", x, err, 100)

	v, err := d.Break(ctx, ss[1].ID, "broken-off")
	c.check(err)
	if w, err := d.Break(ctx, ss[1].ID, "broken-off"); err != nil || w.ID != v.ID {
		c.Errorf("broken off again: %+v, %v", w, err)
	}
	x, err = d.OpenImage(ctx, v.ID)
	c.wantFull("what was broken off", x, err, 2)
	found, err := d.Lookup(ctx, "read")
	c.check(err)
	if len(found) != len(ids)-1 {
		c.Errorf("found after one was broken off: %+v", found)
	}
	c.rbd("rm", "--no-progress", string(v.ID))
	for _, s := range append(ss, safe) {
		c.check(d.Delete(ctx, s.ID))
	}
	for _, v := range ids {
		c.rbd("snap", "rm", "--no-progress", string(v)+"@others")
	}
	c.wantNothingLeft(ids...)
}

// refused are images of which a group snapshot would not be one instant.
func (c *cluster) refused() {
	d := c.driver(rbd.Options{Pools: []string{cephlab.Pool + "/ns"}})
	ctx := c.Context()
	ids := c.images(cephlab.Pool, 3)
	bare := c.images(cephlab.Pool, 1, "--image-feature=layering")
	_, err := d.SplitGroup(ctx, "bare", append(bare, ids[0]))
	c.wantKind(err, driver.NotSupported, "an image without exclusive-lock")
	_, err = d.SplitGroup(ctx, "spaces", append(c.images(cephlab.Pool+"/ns", 1), ids[0]))
	c.wantKind(err, driver.NotSupported, "images of two namespaces")
	c.rbd("group", "create", "rbd/mine")
	c.rbd("group", "image", "add", "rbd/mine", string(ids[0]))
	c.rbd("group", "image", "add", "rbd/mine", string(ids[2]))
	_, err = d.SplitGroup(ctx, "part", ids[:2])
	c.wantKind(err, driver.NotSupported, "a part of somebody's group")
	s, err := d.Split(ctx, "one", ids[1])
	c.check(err)
	_, err = d.SplitGroup(ctx, "one", ids[1:])
	c.wantKind(err, driver.InvalidRequest, "a group with the tag of one")
	c.check(d.Delete(ctx, s.ID))
	c.rbd("group", "rm", "rbd/mine")
	c.wantNothingLeft(append(ids, bare...)...)
}

// ownGroup splits a group of the administrator's, and leaves it as it was.
func (c *cluster) ownGroup() {
	d := c.driver(rbd.Options{})
	ids := c.images(cephlab.Pool, 2)
	c.rbd("group", "create", "rbd/mine")
	for _, v := range ids {
		c.rbd("group", "image", "add", "rbd/mine", string(v))
	}
	c.rbd("group", "snap", "create", "rbd/mine@theirs")
	ss, err := d.SplitGroup(c.Context(), "own", ids)
	c.check(err)
	found, err := d.Lookup(c.Context(), "own")
	c.check(err)
	if len(found) != 2 || !strings.HasPrefix(ss[0].Group, "rbd/mine@") {
		c.Errorf("%+v, found %+v", ss, found)
	}
	for _, s := range ss {
		c.check(d.Delete(c.Context(), s.ID))
	}
	if out := c.rbd("group", "snap", "ls", "rbd/mine"); !strings.Contains(out, "theirs") || strings.Contains(out, "cleave") {
		c.Errorf("snapshots of the group: %s", out)
	}
	if out := c.rbd("group", "image", "ls", "rbd/mine"); len(strings.Fields(out)) != 2 {
		c.Errorf("images of the group: %s", out)
	}
	c.rbd("group", "rm", "rbd/mine")
	c.wantNothingLeft(ids...)
}

// twoSets are there at once and share images.
func (c *cluster) twoSets() {
	d := c.driver(rbd.Options{})
	ids := c.images(cephlab.Pool, 3)
	for _, v := range ids {
		c.fill(d, v, 1)
	}
	first, err := d.SplitGroup(c.Context(), "first", ids[:2])
	c.check(err)
	for _, v := range ids {
		c.fill(d, v, 2)
	}
	second, err := d.SplitGroup(c.Context(), "second", ids[1:])
	c.check(err)
	_, err = d.SplitGroup(c.Context(), "second", ids)
	c.wantKind(err, driver.InvalidRequest, "a tag's group with another image")
	for i, s := range append(first, second...) {
		x, err := d.Open(c.Context(), s.ID)
		c.wantFull(string(s.ID), x, err, byte(1+i/2))
	}
	for _, s := range append(first, second...) {
		c.check(d.Delete(c.Context(), s.ID))
	}
	c.wantNothingLeft(ids...)
}

// held measures for how long a writer waits while a group is split.
func (c *cluster) held() {
	d := c.driver(rbd.Options{})
	ids := c.images(cephlab.Pool, 2)
	x, err := d.OpenImage(c.Context(), ids[0])
	c.check(err)
	var longest atomic.Int64
	ctx, stop := context.WithCancel(c.Context())
	done := make(chan error)
	go func() {
		p := make([]byte, 4096)
		for ctx.Err() == nil {
			began := time.Now()
			if _, err := x.WriteAt(p, 0); err != nil {
				done <- err
				return
			}
			longest.Store(max(longest.Load(), int64(time.Since(began))))
		}
		done <- nil
	}()
	time.Sleep(time.Second)
	idle := time.Duration(longest.Swap(0))
	began := time.Now()
	ss, err := d.SplitGroup(c.Context(), "held", ids)
	took := time.Since(began)
	c.check(err)
	time.Sleep(time.Second)
	stop()
	c.check(<-done)
	c.check(x.(io.Closer).Close())
	c.Logf("FIGURE longest write while a group of 2 images is split: %v, of %v that it takes (%v before)",
		time.Duration(longest.Load()).Round(time.Millisecond), took.Round(time.Millisecond), idle.Round(time.Millisecond))
	for _, s := range ss {
		c.check(d.Delete(c.Context(), s.ID))
	}
	c.wantNothingLeft(ids...)
}

// orderOfFour checks the write order over four images under load.
func (c *cluster) orderOfFour() {
	d := c.driver(rbd.Options{})
	a := arrays.New("lab", d, arrays.Options{})
	ids := c.images(cephlab.Pool, 4)
	var vs []arraytest.Volume
	for _, v := range ids {
		x, err := d.OpenImage(c.Context(), v)
		c.check(err)
		defer x.(io.Closer).Close()
		vs = append(vs, arraytest.Volume{ID: v, Device: x})
	}
	for i := range 10 {
		c.check(arraytest.SplitUnderLoad(c.Context(), a, driver.Tag(fmt.Sprintf("four-%d", i)), vs))
	}
	c.wantNothingLeft(ids...)
}

// crash ends the provider before and after each of its commands, and wants that
// the next one finds all of the group or nothing, splits, and leaves nothing.
func (c *cluster) crash() {
	ids := c.images(cephlab.Pool, 2)
	dir := c.TempDir()
	command, left := filepath.Join(dir, "rbd"), filepath.Join(dir, "left")
	// It counts down, and from 0 on nothing is done; before or after, as the name is.
	script := `#!/bin/bash
exec 9<` + dir + `; flock 9
n=$(<` + left + `)
echo $((n - 1)) >` + left + `
((n > 0)) || kill -9 $$
/usr/bin/rbd "$@"; status=$?
((n > 1)) || [[ ! -e ` + dir + `/after ]] || kill -9 $$
exit $status
`
	c.check(os.WriteFile(command, []byte(script), 0o700))
	d := c.driver(rbd.Options{})
	n := 0
	for whole := false; !whole; n++ {
		for _, after := range []bool{false, true} {
			os.Remove(filepath.Join(dir, "after"))
			if after {
				c.check(os.WriteFile(filepath.Join(dir, "after"), nil, 0o600))
			}
			tag := driver.Tag(fmt.Sprintf("crash-%d-%v", n, after))
			c.check(os.WriteFile(left, fmt.Appendf(nil, "%d\n", n+1), 0o600))
			_, err := c.driver(rbd.Options{Command: command}).SplitGroup(c.Context(), tag, ids)
			whole = whole || err == nil && !after
			found, lost := d.Lookup(c.Context(), tag)
			c.check(lost)
			if len(found) != 0 && len(found) != len(ids) || err == nil && len(found) == 0 {
				c.Errorf("after %d commands (%v): found %+v", n, err, found)
			}
			if len(found) == 0 {
				c.wantNothingLeft(ids...)
			}
			ss, err := d.SplitGroup(c.Context(), tag, ids)
			c.check(err)
			for _, s := range ss {
				x, err := d.Open(c.Context(), s.ID)
				c.wantFull(string(s.ID), x, err, 0)
				c.check(d.Delete(c.Context(), s.ID))
			}
			c.wantNothingLeft(ids...)
		}
	}
	if n < 10 {
		c.Errorf("it took %d commands only", n)
	}
	c.Logf("FIGURE commands before and after which it was ended: %d", n)
}

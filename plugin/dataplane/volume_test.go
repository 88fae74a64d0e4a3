package dataplane

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun"
)

func TestVolumeIsSeenByWhoItIsFor(t *testing.T) {
	need(t, "qemu-io")
	c, _ := run(t, config(t))
	v := volume(t, c, "db", 64<<20)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.SetInitiator(t.Context(), remote.Initiator{IQN: alice, User: "alice", SecretFile: secret}); err != nil {
		t.Fatal(err)
	}
	p, err := c.ExposeVolume(t.Context(), "db", []string{alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	if p.Identity != v.Identity || p.IQN != targetIQN || len(p.Portals) != 1 || !p.Writable {
		t.Errorf("path %+v", p)
	}
	right := []string{"--object", "secret,id=s,file=" + secret}
	os.WriteFile(secret+".raw", []byte("correct horse battery"), 0o600)
	os.WriteFile(secret+".bad", []byte("wrong horse battery!!"), 0o600)
	right[1] = "secret,id=s,file=" + secret + ".raw"
	wrong := []string{"--object", "secret,id=s,file=" + secret + ".bad"}
	asAlice := disk(p, alice, "file.user=alice", "file.password-secret=s")

	if err := qemuIO(t, asAlice, right, "write -P 0x5a 0 1M", "write -P 0x5b 32M 64k", "flush", "read -P 0x5a 0 1M", "read -P 0x5b 32M 64k"); err != nil {
		t.Error(err)
	}
	for who, err := range map[string]error{
		"alice with a wrong secret":    qemuIO(t, asAlice, wrong, "read 0 4k"),
		"alice without a secret":       qemuIO(t, disk(p, alice), nil, "read 0 4k"),
		"bob, who is not in the mask":  qemuIO(t, disk(p, bob), nil, "read 0 4k"),
		"bob, with alice's own secret": qemuIO(t, disk(p, bob, "file.user=alice", "file.password-secret=s"), right, "read 0 4k"),
	} {
		if err == nil {
			t.Errorf("%s could read the volume", who)
		}
	}

	// Every mirror is a plain file with the content.
	v, err = c.Volume(t.Context(), v.ID)
	if err != nil || len(v.Replicas) != 2 {
		t.Fatalf("%+v, %v", v, err)
	}
	for _, m := range v.Replicas {
		b := make([]byte, 1)
		f, err := os.Open(m.File)
		if err != nil {
			t.Fatal(err)
		}
		f.ReadAt(b, 32<<20)
		f.Close()
		if b[0] != 0x5b {
			t.Errorf("mirror %s does not hold what was written", m.File)
		}
	}

	// Found by what a hypervisor knows, and not by less.
	for name, tc := range map[string]struct {
		disk driver.Disk
		want driver.Kind
	}{
		"IQN and LUN":         {driver.Disk{IQN: p.IQN, LUN: p.LUN}, 0},
		"with the portal":     {driver.Disk{IQN: p.IQN, LUN: p.LUN, Portal: p.Portals[0]}, 0},
		"and the identity":    {driver.Disk{IQN: p.IQN, LUN: p.LUN, Identity: v.Identity}, 0},
		"NAA":                 {driver.Disk{NAA: v.Identity.NAAString()}, 0},
		"serial":              {driver.Disk{Serial: v.Identity.Serial()}, 0},
		"a mirror's path":     {driver.Disk{Path: v.Replicas[1].File}, 0},
		"another portal":      {driver.Disk{IQN: p.IQN, LUN: p.LUN, Portal: "192.0.2.1:3260"}, driver.NotMine},
		"another target":      {driver.Disk{IQN: "iqn.2026-01.net.example:other", LUN: p.LUN}, driver.NotMine},
		"another LUN":         {driver.Disk{IQN: p.IQN, LUN: p.LUN + 1}, driver.NotMine},
		"two that contradict": {driver.Disk{IQN: p.IQN, LUN: p.LUN, Identity: lun.NewIdentity()}, driver.Ambiguous},
		"nothing":             {driver.Disk{}, driver.NotMine},
	} {
		got, err := c.Resolve(t.Context(), tc.disk)
		if kindOf(err) != tc.want || tc.want == 0 && got.ID != v.ID {
			t.Errorf("%s: %+v, %v; want kind %v", name, got, err, tc.want)
		}
	}

	if err := c.RemoveInitiator(t.Context(), alice); kindOf(err) != driver.Busy {
		t.Errorf("removing an initiator that sees a LUN: %v", err)
	}
	if err := c.DeleteVolume(t.Context(), v.ID); kindOf(err) != driver.Busy {
		t.Errorf("deleting an exposed volume: %v", err)
	}
	for range 2 {
		if err := c.UnexposeVolume(t.Context(), "db"); err != nil {
			t.Error(err)
		}
	}
	if err := qemuIO(t, asAlice, right, "read 0 4k"); err == nil {
		t.Error("an unexposed volume can be read")
	}
	for range 2 {
		if err := c.DeleteVolume(t.Context(), v.ID); err != nil {
			t.Error(err)
		}
	}
	s, err := c.Status(t.Context())
	if err != nil || len(s.LUNs) != 0 || len(s.Problems) != 0 || len(s.Pools) != 3 {
		t.Errorf("status %+v, %v", s, err)
	}
}

func TestSplitUnderLoad(t *testing.T) {
	need(t, "qemu-io")
	c, _ := run(t, config(t))
	v := volume(t, c, "db", 64<<20)
	p, err := c.ExposeVolume(t.Context(), v.ID, []string{alice}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := qemuIO(t, disk(p, alice), nil, "write -P 7 0 1M"); err != nil {
		t.Fatal(err)
	}
	// A canary: block k gets the number of the round, then block k+1 does. A
	// split between may differ by one, never by more.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			var cmds []string
			for i := range 20 {
				pattern := (n*20 + i + 1) % 250
				cmds = append(cmds, sprint("write -P %d 16M 64k", pattern), sprint("write -P %d 48M 64k", pattern))
			}
			if err := qemuIO(t, disk(p, alice), nil, cmds...); err != nil && ctx.Err() == nil {
				t.Errorf("production I/O: %v", err)
			}
		}
	})
	tag := driver.Tag("set-1")
	if err := c.Prepare(t.Context(), []driver.VolumeID{v.ID}, driver.PrepareOptions{Tag: tag, AllowUnmirrored: true}); err != nil {
		t.Fatal(err)
	}
	ss, err := c.SplitGroup(t.Context(), tag, []driver.VolumeID{v.ID})
	if err != nil {
		t.Fatal(err)
	}
	s := ss[0]
	cancel()
	wg.Wait()

	d, err := c.Open(t.Context(), s.ID)
	if err != nil {
		t.Fatal(err)
	}
	x, y := make([]byte, 1), make([]byte, 1)
	if _, err := d.ReadAt(x, 16<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(y, 48<<20); err != nil {
		t.Fatal(err)
	}
	if diff := (int(x[0]) - int(y[0]) + 250) % 250; diff > 1 {
		t.Errorf("the split is torn: %d and %d", x[0], y[0])
	}
	if f, ok := d.(lun.Filer); !ok {
		t.Error("the device is no lun.Filer")
	} else if _, err := f.File().WriteAt(x, 0); err == nil {
		t.Error("the descriptor can be written to")
	}
	if got := d.(lun.Identified).Identity(); got != s.Identity || got == v.Identity {
		t.Errorf("identity %v, split %v, volume %v", got, s.Identity, v.Identity)
	}
	if err := c.Delete(t.Context(), s.ID); kindOf(err) != driver.Busy {
		t.Errorf("deleting an open snapshot: %v", err)
	}
	if err := d.(interface{ Close() error }).Close(); err != nil {
		t.Error(err)
	}

	// Hidden until exposed, read-only until asked, writable on the same LUN.
	ro, err := c.Expose(t.Context(), s.ID, driver.ExposeOptions{Initiators: []string{bob}})
	if err != nil || ro.Writable {
		t.Fatalf("%+v, %v", ro, err)
	}
	if err := qemuIO(t, disk(ro, bob), nil, "read -P 7 0 1M"); err != nil {
		t.Error(err)
	}
	if err := qemuIO(t, disk(ro, alice), nil, "read 0 4k"); err == nil {
		t.Error("the split is seen by an initiator that it is not for")
	}
	if err := qemuIO(t, disk(ro, bob), nil, "write -P 8 0 4k"); err == nil {
		t.Error("a read-only split was written to")
	}
	if err := c.Delete(t.Context(), s.ID); kindOf(err) != driver.Busy {
		t.Errorf("deleting an exposed snapshot: %v", err)
	}
	rw, err := c.Expose(t.Context(), s.ID, driver.ExposeOptions{Initiators: []string{bob}, Writable: true})
	if err != nil || rw.LUN != ro.LUN || !rw.Writable {
		t.Fatalf("%+v, %v; was LUN %d", rw, err, ro.LUN)
	}
	if err := qemuIO(t, disk(rw, bob), nil, "write -P 8 0 4k", "read -P 8 0 4k", "read -P 7 4k 4k"); err != nil {
		t.Error(err)
	}
	if err := qemuIO(t, disk(p, alice), nil, "read -P 7 0 1M"); err != nil {
		t.Errorf("writing to the split reached the volume: %v", err)
	}
	for range 2 {
		if err := c.Unexpose(t.Context(), s.ID); err != nil {
			t.Error(err)
		}
	}
	again, err := c.Expose(t.Context(), s.ID, driver.ExposeOptions{Initiators: []string{bob}})
	if err != nil || again.LUN == ro.LUN {
		t.Errorf("LUN %d was given again (%v)", again.LUN, err)
	}
	if err := c.Unexpose(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
	if err := c.Resync(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.WaitInSync(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	v, err = c.Volume(t.Context(), v.ID)
	if err != nil || v.Mirrors != 2 {
		t.Errorf("after the resync: %+v, %v", v, err)
	}
	if ss, err := c.Lookup(t.Context(), tag); err != nil || len(ss) != 0 {
		t.Errorf("Lookup: %+v, %v", ss, err)
	}
}

func TestBadRequestsToTheControlAPI(t *testing.T) {
	cfg := config(t)
	c, _ := run(t, cfg)
	v := volume(t, c, "db", 8<<20)
	for name, tc := range map[string]struct {
		err  error
		kind driver.Kind
	}{
		"exposed to nobody":      {second(c.ExposeVolume(t.Context(), v.ID, nil, false)), driver.InvalidRequest},
		"exposed to a bad name":  {second(c.ExposeVolume(t.Context(), v.ID, []string{"eve"}, false)), driver.InvalidRequest},
		"a volume that is not":   {second(c.ExposeVolume(t.Context(), "nope", []string{alice}, false)), driver.NotFound},
		"a snapshot that is not": {second(c.Expose(t.Context(), "nope", driver.ExposeOptions{Initiators: []string{alice}})), driver.NotFound},
		"opened":                 {second(c.Open(t.Context(), "nope")), driver.NotFound},
		"twice the same name":    {second(c.CreateVolume(t.Context(), remote.CreateVolumeRequest{Name: "db", Size: 8 << 20, Pools: []string{"a"}})), driver.InvalidRequest},
		"a pool that is not":     {second(c.CreateVolume(t.Context(), remote.CreateVolumeRequest{Name: "x", Size: 8 << 20, Pools: []string{"zz"}})), driver.NotFound},
		"a view without worker":  {second(c.Publish(t.Context(), remote.Publication{Name: "v", Socket: "/nonexistent", Identity: lun.NewIdentity(), Initiators: []string{alice}})), driver.NotFound},
		"a short CHAP secret":    {c.SetInitiator(t.Context(), remote.Initiator{IQN: alice, Secret: "short"}), driver.InvalidRequest},
		"arming for no time":     {c.Arm(t.Context(), "t", []driver.VolumeID{v.ID}, 0), driver.InvalidRequest},
		"arming without consent": {c.Arm(t.Context(), "t", []driver.VolumeID{v.ID}, time.Second), driver.NeedsConsent},
		"a commit of nothing":    {second(c.Commit(t.Context(), "t")), driver.NotArmed},
		"a split unprepared":     {second(c.Split(t.Context(), "t", "nope")), driver.NotFound},
	} {
		if got := kindOf(tc.err); got != tc.kind || strings.Contains(tc.err.Error(), "\n") {
			t.Errorf("%s: %v: kind %v, want %v", name, tc.err, got, tc.kind)
		}
	}
	for what, err := range map[string]error{
		"unexposing what is not": c.Unexpose(t.Context(), "nope"), "withdrawing what is not": c.Withdraw(t.Context(), "nope"),
		"deleting what is not": c.DeleteVolume(t.Context(), "nope"), "aborting what is not": c.Abort(t.Context(), "t"), "an initiator that is not": c.RemoveInitiator(t.Context(), alice),
	} {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if fi, err := os.Stat(cfg.Socket); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("control socket: %v, %v", fi.Mode(), err)
	}
	if err := Run(t.Context(), cfg, nil); err == nil {
		t.Error("a second data plane ran on the same state")
	}
}

func second[T any](_ T, err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

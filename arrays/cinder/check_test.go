package cinder

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cleave-san/cleave/arrays/cinder/cinderlab"
	"github.com/cleave-san/cleave/arrays/driver"
)

// checked are the findings of a check, by what was looked at.
func checked(t *testing.T, d *Driver, next ...driver.VolumeID) map[string]driver.Finding {
	t.Helper()
	fs, err := d.Check(t.Context(), next)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]driver.Finding{}
	for _, f := range fs {
		t.Logf("%-10s %-32s %-8s %s", f.Area, f.Check, f.Result, f.Detail)
		if strings.Contains(f.Detail+f.Try, secret) {
			t.Errorf("%s tells a secret", f.Check)
		}
		out[f.Check] = f
	}
	return out
}

func expect(t *testing.T, fs map[string]driver.Finding, r driver.Result, says string, checks ...string) {
	t.Helper()
	for _, c := range checks {
		if f, ok := fs[c]; !ok || f.Result != r || !strings.Contains(f.Detail, says) {
			t.Errorf("%s: %s %q, want %s with %q", c, f.Result, f.Detail, r, says)
		}
	}
}

// rights are about what a real Cinder's policy lets roles do, as it was written by
// its makers: what Check says of each, that it leaves nothing behind, and that the
// least roles documented do for a whole life of a snapshot.
func rights(t *testing.T, c *cinderlab.Cinder) {
	v := driver.VolumeID(c.VolumeOf("consistent", 2))
	plain := driver.VolumeID(c.Volume("plain"))
	second := driver.VolumeID(c.Volume("consistent"))
	// In use, as a VM's: a snapshot without force is then refused.
	var a struct{ Attachment struct{ ID string } }
	c.Do(http.MethodPost, "attachments", map[string]any{"attachment": map[string]any{
		"volume_uuid": v, "connector": map[string]any{"initiator": "iqn.2026-01.test:vm", "host": "vm", "ip": "127.0.0.1"},
	}}, &a)
	c.Do(http.MethodPost, "attachments/"+a.Attachment.ID+"/action", map[string]any{"os-complete": map[string]any{}}, nil)
	reads := []string{"read volumes", "read snapshots", "read attachments", "read groups", "read group snapshots"}
	changes := []string{"create volumes", "create groups", "create snapshots", "mark volumes"}
	const together = "several volumes at one instant"

	before := c.Everything()
	t.Run("Reader", func(t *testing.T) {
		fs := checked(t, newDriver(t, c.As("reader")), v)
		expect(t, fs, driver.OK, "allowed", reads...)
		expect(t, fs, driver.Failed, "refused (policy volume:create", "create volumes", "create snapshots", "mark volumes")
		expect(t, fs, driver.Failed, "refused (policy group:create)", "create groups")
	})
	t.Run("Member", func(t *testing.T) {
		d := newDriver(t, c.As("member", "reader"))
		fs := checked(t, d, v)
		expect(t, fs, driver.OK, "allowed", append(reads, changes...)...)
		expect(t, fs, driver.Warning, "only administrators", "read back ends' pools")
		expect(t, fs, driver.Warning, "refused (policy volume_extension:volume_host_attribute)", "read volumes' pools")
		expect(t, fs, driver.Warning, "not possible", together)
		expect(t, fs, driver.OK, "needs 4", "quota gigabytes")
		expect(t, fs, driver.OK, "needs 1", "quota snapshots", "quota volumes")
	})
	t.Run("PresentedTo", func(t *testing.T) {
		d := newDriver(t, c.As("member", "reader"))
		if hosts, err := d.PresentedTo(t.Context(), v); d.Kind(err) != driver.NotSupported {
			t.Errorf("to a member: %v, %v", hosts, err)
		}
		d = newDriver(t, c.Endpoint)
		if hosts, err := d.PresentedTo(t.Context(), v); err != nil || !slices.Equal(hosts, []string{"vm"}) {
			t.Errorf("to an administrator: %v, %v", hosts, err)
		}
		if hosts, err := d.PresentedTo(t.Context(), plain); err != nil || len(hosts) != 0 {
			t.Errorf("of a volume that nobody has: %v, %v", hosts, err)
		}
	})
	t.Run("PolicyIsNotEnough", func(t *testing.T) {
		fs := checked(t, newDriver(t, c.As("member", "reader", cinderlab.Pools)), v)
		expect(t, fs, driver.Warning, "only administrators", "read back ends' pools")
		expect(t, fs, driver.OK, "allowed", "read volumes' pools")
	})
	t.Run("AdministratorOfGroups", func(t *testing.T) {
		d := newDriver(t, c.As("admin", "member", "reader"))
		fs := checked(t, d, v, second)
		expect(t, fs, driver.OK, "with group type cleave", together)
		expect(t, fs, driver.OK, "needs 6", "quota gigabytes")
		fs = checked(t, d, v, plain)
		expect(t, fs, driver.Warning, "not in lab@plain", together)
		d.o.GroupType = "nothing-such"
		expect(t, checked(t, d, v), driver.Failed, "there is no group type", together)
	})
	t.Run("WithoutSnapshots", func(t *testing.T) {
		fs := checked(t, newDriver(t, c.As("member", "reader", cinderlab.WithoutSnapshots)), v)
		expect(t, fs, driver.Failed, "refused (policy volume:create_snapshot)", "create snapshots")
		expect(t, fs, driver.OK, "allowed", "create volumes", "create groups", "mark volumes")
	})
	t.Run("Administrator", func(t *testing.T) {
		expect(t, checked(t, newDriver(t, c.Endpoint)), driver.OK, "allowed", append(reads, "create volumes", "read back ends' pools", "read volumes' pools")...)
	})
	t.Run("Quota", func(t *testing.T) {
		set := func(n int) {
			c.Do(http.MethodPut, "os-quota-sets/"+cinderlab.Project, map[string]any{"quota_set": map[string]any{"snapshots": n}}, nil)
		}
		set(1)
		defer set(-1)
		fs := checked(t, newDriver(t, c.As("member", "reader")), v, second)
		expect(t, fs, driver.Failed, "0 of 1 snapshots used, 1 left, the next set needs 2", "quota snapshots")
		if l := fs["quota snapshots"].Limit; l == nil || l.Fits() || l.Most != 1 {
			t.Errorf("its limit is %+v", l)
		}
	})
	if after := c.Everything(); before != after {
		t.Errorf("checks have changed something:\n%s\nbefore:\n%s", after, before)
	}
	t.Run("LeastRole", func(t *testing.T) { leastRole(t, newDriver(t, c.As("member", "reader")), second) })
	t.Run("LeastRoleOfGroups", func(t *testing.T) {
		leastRole(t, newDriver(t, c.As("admin", "member", "reader")), second, v)
	})
}

// leastRole takes, exposes and gives back a snapshot of each volume.
func leastRole(t *testing.T, d *Driver, vs ...driver.VolumeID) {
	ctx := t.Context()
	tag := driver.Tag(strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())))
	if err := d.Prepare(ctx, vs, driver.PrepareOptions{Tag: tag}); err != nil {
		t.Fatal(err)
	}
	ss, err := d.SplitGroup(ctx, tag, vs)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range ss {
		if _, err := d.Expose(ctx, s.ID, driver.ExposeOptions{Initiators: []string{"iqn.1993-08.org.debian:01:backup"}}); err != nil {
			t.Error(err)
		}
		if err := d.Unexpose(ctx, s.ID); err != nil {
			t.Error(err)
		}
		if err := d.Delete(ctx, s.ID); err != nil {
			t.Error(err)
		}
	}
	if left, err := d.Lookup(ctx, tag); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

const theLimits = `{"limits": {"absolute": {"maxTotalSnapshots": 10, "totalSnapshotsUsed": 10, "maxTotalVolumes": 100, "totalVolumesUsed": 95, "maxTotalVolumeGigabytes": -1, "totalGigabytesUsed": 7}}}`

// routes are those of a project with one volume, of 2 GiB and in use, which may
// not read quotas.
func routes() map[string][]http.HandlerFunc {
	refused := refuse(403, "forbidden", "Policy doesn't allow it to be performed.", "")
	nonsense := refuse(400, "badRequest", "Invalid input received", "")
	return map[string][]http.HandlerFunc{
		"GET volumes/detail":   {says(`{"volumes": [{"id": "` + volumeID + `", "size": 2, "status": "in-use", "volume_type": "ssd", "os-vol-host-attr:host": "h@b#p"}]}`)},
		"GET snapshots/detail": {says(none)}, "GET attachments/detail": {says(`{}`)}, "GET groups/detail": {refused}, "GET group_snapshots/detail": {says(`{}`)},
		"POST volumes": {nonsense}, "POST groups": {refuse(404, "itemNotFound", "Volume type could not be found.", "")}, "POST snapshots": {refused},
		"POST volumes/" + volumeID + "/metadata": {says(`{"metadata": {}}`)},
		"GET scheduler-stats/get_pools":          {says(`{"pools": [{"name": "h@b#p", "capabilities": {"consistent_group_snapshot_enabled": true, "free_capacity_gb": 3.5, "total_capacity_gb": "100"}}]}`)},
		"GET os-quota-sets/" + project:           {refused}, "GET limits": {says(theLimits)},
	}
}

func TestCheckInTrouble(t *testing.T) {
	s := script(t, routes())
	d, _ := scriptedDriver(t, s)
	fs := checked(t, d, volumeID, nowhere)
	expect(t, fs, driver.Failed, "refused (policy group:get_all)", "read groups")
	expect(t, fs, driver.Failed, "refused (policy volume:create_snapshot)", "create snapshots")
	expect(t, fs, driver.OK, "allowed", "create volumes", "create groups", "mark volumes")
	expect(t, fs, driver.Failed, "10 of 10 snapshots used, 0 left, the next set needs 1", "quota snapshots")
	expect(t, fs, driver.Warning, "95 of 100 volumes used, 5 left", "quota volumes")
	expect(t, fs, driver.OK, "7 gigabytes used, without a limit, the next set needs 4", "quota gigabytes")
	expect(t, fs, driver.Warning, "3.5 GiB left, the next set needs 2 GiB", "pool h@b#p")
	expect(t, fs, driver.Failed, "1 of the next set's 2 volumes", "volumes")
}

// A volume that was let go between the question and the probe is snapshot by it:
// that is taken back.
func TestProbeThatHadAnEffect(t *testing.T) {
	r := routes()
	r["POST snapshots"] = []http.HandlerFunc{one("creating")}
	r["DELETE snapshots/"+theID] = []http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(202) }}
	s := script(t, r)
	d, _ := scriptedDriver(t, s)
	expect(t, checked(t, d), driver.OK, "allowed", "create snapshots")
	if s.times("POST snapshots") != 1 || s.times("DELETE snapshots/"+theID) != 1 {
		t.Errorf("asked %v", s.asked)
	}
}

func TestCheckAsWhom(t *testing.T) {
	s := script(t, routes())
	d, err := New(Options{Cloud: "lab", CloudsFile: cloudsFile(t, password(keystone(t, s, 1000).URL, secret))})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, checked(t, d), driver.OK, "project "+project+" with roles member, reader", "who it is")
}

// A Cinder that hangs is given up when the caller's time is over.
func TestCheckHangs(t *testing.T) {
	r := routes()
	stop := make(chan struct{})
	r["GET limits"] = []http.HandlerFunc{func(http.ResponseWriter, *http.Request) { <-stop }}
	s := script(t, r)
	t.Cleanup(func() { close(stop) }) // before the server's
	d, _ := scriptedDriver(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := d.Check(ctx, nil)
	if took := time.Since(began); took > 5*time.Second || d.Kind(err) != driver.Unreachable {
		t.Errorf("after %v: %v", took, err)
	}
}

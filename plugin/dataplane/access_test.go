package dataplane

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
)

// Every change of what one initiator may do leaves the others as they were.
func TestGrant(t *testing.T) {
	all := []access{readWrite, readOnly, noAccess}
	for _, a := range all {
		for _, b := range all {
			for _, next := range all {
				var l lunRecord
				l.grant(alice, a)
				l.grant(bob, b)
				l.grant(alice, next)
				if l.access(alice) != next || l.access(bob) != b {
					t.Errorf("alice %s, bob %s, then alice %s: alice %s, bob %s", a, b, next, l.access(alice), l.access(bob))
				}
				if l.Writable != (next == readWrite || b == readWrite) {
					t.Errorf("alice %s, bob %s: writable %t", next, b, l.Writable)
				}
				if !l.Writable && len(l.ReadOnly) > 0 || slices.ContainsFunc(l.ReadOnly, func(n iscsi.Name) bool { return l.access(n) == noAccess }) {
					t.Errorf("alice %s, bob %s: read-only are %v", next, b, l.ReadOnly)
				}
			}
		}
	}
}

func TestMasks(t *testing.T) {
	need(t, "qemu-io")
	cfg := config(t)
	c, stop := run(t, cfg)
	v := volume(t, c, "db", 8<<20)
	set := func(who, access string) {
		t.Helper()
		if err := c.SetMask(t.Context(), "db", who, access); err != nil {
			t.Fatalf("%s %s: %v", who, access, err)
		}
	}
	shows := func(want ...string) {
		t.Helper()
		ms, err := c.Masks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for _, m := range ms {
			if m.Kind != "volume" || m.Volume != "db" || m.Of != string(v.ID) || m.Identity != v.Identity || m.LUN != 1 {
				t.Errorf("%+v", m)
			}
			got = append(got, m.Initiator+" "+m.Access)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	}
	may := func(who string, read, write bool) {
		t.Helper()
		st, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p := driver.Path{Portals: st.Portals, IQN: targetIQN, LUN: 1}
		if err := qemuIO(t, disk(p, who), nil, "read 0 4k"); (err == nil) != read {
			t.Errorf("%s reads: %v", who, err)
		}
		if err := qemuIO(t, disk(p, who), nil, "write -P 3 0 4k"); (err == nil) != write {
			t.Errorf("%s writes: %v", who, err)
		}
	}
	set(alice, "ro")
	set(alice, "ro")
	shows(alice + " ro")
	may(alice, true, false)
	may(bob, false, false)
	// Another's right to write is not hers.
	set(bob, "rw")
	shows(alice+" ro", bob+" rw")
	may(alice, true, false)
	may(bob, true, true)
	// Nor is it by exposing.
	if _, err := c.ExposeVolume(t.Context(), "db", []string{alice}, true); err != nil {
		t.Fatal(err)
	}
	shows(alice+" ro", bob+" rw")
	stop()
	c, stop = run(t, cfg)
	shows(alice+" ro", bob+" rw")
	may(alice, true, false)
	set(bob, "ro")
	may(bob, true, false)
	set(alice, "rw")
	may(alice, true, true)
	may(bob, true, false)
	set(alice, "none")
	set(alice, "none")
	shows(bob + " ro")
	may(alice, false, false)
	set(bob, "none")
	shows([]string{}...)
	if got, err := c.Volume(t.Context(), v.ID); err != nil || got.LUN != nil || len(got.UsedBy) > 0 {
		t.Errorf("nobody sees it, and it is exposed: %+v, %v", got, err)
	}
	for _, x := range []struct {
		of, who, access string
		want            driver.Kind
	}{
		{"nothing", alice, "rw", driver.NotFound},
		{"db", "alice", "rw", driver.InvalidRequest},
		{"db", alice, "", driver.InvalidRequest},
		{"db", alice, "write", driver.InvalidRequest},
	} {
		if err := c.SetMask(t.Context(), x.of, x.who, x.access); kindOf(err) != x.want {
			t.Errorf("%v: %v", x, err)
		}
	}
	stop()
}

// A record of version 1 is read; this program's is refused by one that knows no
// other.
func TestRecordVersion1(t *testing.T) {
	path := filepath.Join(t.TempDir(), "target.json")
	old := `{"version": 1, "next": 2, "luns": [{"number": 1, "kind": "volume", "of": "x", "initiators": ["` + alice + `"], "writable": true}]}`
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := loadRecord(path)
	if err != nil || r.LUNs[0].access(alice) != readWrite {
		t.Fatalf("%+v, %v", r, err)
	}
	if err := r.save(path); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), `"version": 2`) {
		t.Errorf("%s %v", b, err)
	}
}

func TestPortalGroups(t *testing.T) {
	cfg := config(t)
	any := netip.MustParseAddrPort("127.0.0.1:0")
	cfg.Portals = []Portal{{Addr: any}, {Addr: any, Group: 7}}
	c, stop := run(t, cfg)
	defer stop()
	st, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []remote.Portal{{Address: st.Portals[0], Group: 1}, {Address: st.Portals[1], Group: 7}}
	if d := cmp.Diff(want, st.Listening); d != "" {
		t.Error(d)
	}
	need(t, "iscsi-ls")
	v := volume(t, c, "db", 8<<20)
	if err := c.SetMask(t.Context(), v.Name, alice, "rw"); err != nil {
		t.Fatal(err)
	}
	out := discover(t, st.Portals[0])
	for _, p := range st.Listening {
		if tagged := p.Address + "," + map[uint16]string{1: "1", 7: "7"}[p.Group]; !strings.Contains(out, tagged) {
			t.Errorf("discovery does not name %s: %s", tagged, out)
		}
	}
}

// discover is what libiscsi's initiator is told by a discovery session.
func discover(t *testing.T, portal string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "iscsi-ls", "-i", alice, "iscsi://"+portal).CombinedOutput()
	if err != nil {
		t.Fatalf("iscsi-ls: %v: %s", err, out)
	}
	return string(out)
}

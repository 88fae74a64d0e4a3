package lvm2_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/store/lvm2"
)

// other makes another UUID of each.
func other(old string) string {
	sum := sha256.Sum256([]byte(old))
	return hex.EncodeToString(sum[:16])
}

// plain is a UUID without its dashes.
func plain(s string) string { return strings.ReplaceAll(s, "-", "") }

// TestRenew: the group has another name and UUIDs in text and labels alike;
// its volumes are what they were.
func TestRenew(t *testing.T) {
	m := image(t, "lvm-o1-thick-4k")
	pv := readPV(t, m)
	groups, _ := lvm2.Assemble([]*lvm2.PV{pv})
	g := groups[0]
	e := g.Edit()
	name, err := e.Renew("_7", other)
	if err != nil || name != "vgo1_7" {
		t.Fatalf("%q, %v", name, err)
	}
	changes, err := g.Commit(e.Text("test"))
	if err != nil {
		t.Fatal(err)
	}
	label, err := pv.Renew(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(changes[0].Patches(), label) {
		copy(m[p.Off:], p.Data)
	}
	again := readPV(t, m)
	if plain(again.UUID) != other(pv.UUID) || again.InUse != pv.InUse || again.DevSize != pv.DevSize {
		t.Errorf("the PV is %+v, was %+v", again, pv)
	}
	groups, damage := lvm2.Assemble([]*lvm2.PV{again})
	if len(groups) != 1 || len(damage)+len(groups[0].Damage) > 0 {
		t.Fatalf("%d groups, %v", len(groups), damage)
	}
	n := groups[0]
	if n.Name != name || plain(n.UUID) != other(g.UUID) || n.PVs[0].PV != again || n.Seqno != g.Seqno+1 {
		t.Errorf("the group is %s %s with %+v", n.Name, n.UUID, n.PVs[0])
	}
	if got, want := volumes(n), volumes(g); got != want {
		t.Errorf("volumes %s, were %s", got, want)
	}
	if bytes.Contains(n.PVs[0].PV.MDAs[0].Text, []byte(g.UUID)) || bytes.Contains(m[:4096], []byte(plain(pv.UUID))) {
		t.Error("an old UUID is still there")
	}
}

func volumes(g *lvm2.Group) string {
	var out []string
	for _, lv := range g.LVs {
		out = append(out, fmt.Sprint(lv.Name, lv.UUID, lv.Size, lv.Visible, lv.Created, len(lv.Segments)))
	}
	return strings.Join(out, " ")
}

// TestRenewedNamesFit: no device of a volume gets a name that device mapper
// would refuse.
func TestRenewedNamesFit(t *testing.T) {
	long := strings.Repeat("n", 127)
	for _, tc := range []struct{ vg, lv, want string }{
		{"vg", "root", "vg_12345678"},
		{"vg-a", "root", "vg-a_12345678"},
		{long, "root", long[:102] + "_12345678"},
		{strings.Repeat("v-", 60), "root", strings.Repeat("v-", 34) + "_12345678"},
		{"vgo1", strings.Repeat("l", 109), "vg_12345678"},
		{"vgo1", strings.Repeat("l", 100) + "-----", "v_12345678"},
		{"v", strings.Repeat("l", 120), "_refused"},
	} {
		g, err := lvm2.ParseGroup([]byte(strings.NewReplacer("vgo1 {", tc.vg+" {", "root {", tc.lv+" {", `"root"`, `"`+tc.lv+`"`).Replace(o1Text(t))))
		if err != nil {
			t.Fatal(err)
		}
		name, err := g.Edit().Renew("_12345678", other)
		var fe *lun.FormatError
		if tc.want == "_refused" {
			if !errors.As(err, &fe) {
				t.Errorf("%s/%s: %q, %v, want it refused", tc.vg, tc.lv, name, err)
			}
			continue
		}
		if err != nil || name != tc.want {
			t.Errorf("%s/%s: %q, %v, want %q", tc.vg, tc.lv, name, err, tc.want)
		}
		double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
		if dm := double(name) + "-" + double(tc.lv) + "-tpool"; len(dm) > 127 {
			t.Errorf("%s has %d bytes", dm, len(dm))
		}
	}
}

func TestRenewRefusesNonsense(t *testing.T) {
	pv := readPV(t, image(t, "lvm-o1-thick-4k"))
	groups, _ := lvm2.Assemble([]*lvm2.PV{pv})
	bad := func(string) string { return "not-a-uuid" }
	if _, err := groups[0].Edit().Renew("_1", bad); err == nil {
		t.Error("the group took it")
	}
	if _, err := pv.Renew(bad); err == nil {
		t.Error("the PV took it")
	}
}

// TestAlone: only a PV that no group has is one by its own word.
func TestAlone(t *testing.T) {
	pv := readPV(t, image(t, "lvm-o1-thick-4k"))
	if err := pv.Alone(); err == nil || !strings.Contains(err.Error(), pv.UUID) {
		t.Errorf("a PV in use: %v", err)
	}
	pv.InUse = false
	if err := pv.Alone(); err == nil || !strings.Contains(err.Error(), "holds metadata") {
		t.Errorf("one with metadata: %v", err)
	}
	pv.MDAs[0].Text = nil
	if err := pv.Alone(); err != nil {
		t.Errorf("one without: %v", err)
	}
	pv.Damage = []error{errors.New("damaged")}
	if err := pv.Alone(); err == nil {
		t.Error("a damaged one is taken for one without metadata")
	}
}

// renewAny renews a group that a fuzzer made: what comes of it parses, and is the
// same group but for its identity.
func renewAny(t *testing.T, g *lvm2.Group) {
	t.Helper()
	e := g.Edit()
	name, err := e.Renew("_12345678", other)
	if err != nil {
		return
	}
	n, err := lvm2.ParseGroup(e.Text("fuzz"))
	if err != nil {
		t.Fatalf("the renewed text: %v", err)
	}
	if n.Name != name || plain(n.UUID) != other(g.UUID) || len(n.PVs) != len(g.PVs) || volumes(n) != volumes(g) {
		t.Fatalf("%s became %s with %s", g.Name, n.Name, volumes(n))
	}
	for i, pv := range n.PVs {
		if plain(pv.UUID) != other(g.PVs[i].UUID) {
			t.Fatalf("%s is %s", pv.Name, pv.UUID)
		}
	}
}

// relabelAny renews a PV that a fuzzer made.
func relabelAny(t *testing.T, m memory, pv *lvm2.PV) {
	t.Helper()
	p, err := pv.Renew(other)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Data) != 512 || p.Off < pv.Off || p.Off > pv.Off+3*512 {
		t.Fatalf("a label of %d bytes at %d", len(p.Data), p.Off)
	}
	if p.Off+512 > int64(len(m)) {
		return
	}
	copy(m[p.Off:], p.Data)
	if n, err := lvm2.ReadPV(m, pv.Off, pv.Len); err != nil || plain(n.UUID) != other(pv.UUID) {
		t.Fatalf("the renewed PV: %v", err)
	}
}

package assemble

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/cinder"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/arrays/lvm"
	"github.com/cleave-san/cleave/arrays/program"
	"github.com/cleave-san/cleave/arrays/rbd"
	"github.com/cleave-san/cleave/lun"
)

var update = flag.Bool("update", false, "write the README's table of providers anew")

// provider is a row of the README's table: what the provider says of itself, and
// what it was tried with.
type provider struct {
	name   string
	d      driver.Description
	a      *arrays.Array // its options
	tested string        // peer and version
	never  string        // what it was never tried with
}

// providers asks every provider, in the order of the table. A new one gets a row
// here, and `go test ./plugin/assemble -run Matrix -update` writes it down.
func providers(t *testing.T) []provider {
	dir := t.TempDir()
	own, err := embedded.Open(t.Context(), embedded.Options{StateDir: filepath.Join(dir, "state"), Pools: map[string]string{"a": filepath.Join(dir, "a")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Close(); err != nil {
			t.Error(err)
		}
	})
	client := remote.New(filepath.Join(dir, "socket"))
	t.Cleanup(func() { client.Close() })
	describe := func(a *arrays.Array) driver.Description {
		d, err := a.Describe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	out := []provider{{
		name: "`embedded`", d: describe(arrays.New("embedded", own, arrays.Options{})), a: arrays.New("embedded", client, arrays.Options{}),
		tested: "ext4, XFS and tmpfs of Linux 6.1; power cuts simulated", never: "battery-backed caches, real power cuts",
	}}
	out[0].d.Snapshot = true // where a pool's file system makes reflinks
	for _, m := range lvm.Methods() {
		v, err := lvm.New(lvm.Options{Group: "vg0", Method: m})
		if err != nil {
			t.Fatal(err)
		}
		a := arrays.New("lvm", v, arrays.Options{Without: v.Without()})
		out = append(out, provider{
			name: "`lvm`, method `" + string(m) + "`", d: lvm.Describe(m, ""), a: a,
			tested: "lvm2 2.03.16, Linux 6.1, in a VM", never: "physical disks, a cluster with lvmlockd",
		})
	}
	cloud, err := cinder.New(cinder.Options{Cloud: "lab", Connect: func(context.Context, cinder.Connection) (lun.Device, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	ceph, err := rbd.New(rbd.Options{Pools: []string{"vms"}})
	if err != nil {
		t.Fatal(err)
	}
	images := arrays.New("rbd", ceph, arrays.Options{})
	out = append(out, provider{
		name: "`cinder`, on pools with consistent groups", d: driver.Description{Snapshot: true, GroupOrdered: true}, a: arrays.New("cinder", cloud, arrays.Options{}),
		tested: "Cinder 21.3.1, with Keystone 22.0.2 and without; fake driver (no data), RBD on Ceph 16.2.15, LVM with tgtd 1.0.85 (iSCSI, CHAP)", never: "storage of any vendor",
	}, provider{
		name: "`rbd`", d: describe(images), a: images, tested: "Ceph 16.2.15 on one machine, with cephx; read by qemu-storage-daemon, tgt 1.0.85, rbd-nbd", never: "a cluster of several machines",
	})
	for _, x := range examples {
		command, err := filepath.Abs(x.command)
		if err != nil {
			t.Fatal(err)
		}
		p, err := program.Open(t.Context(), program.Options{Command: []string{command}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		a := arrays.New("program", p, arrays.Options{Without: p.Without()})
		out = append(out, provider{name: "`program`, " + x.name, d: describe(a), a: a, tested: x.tested, never: x.never})
	}
	return out
}

// examples are programs that come with Cleave.
var examples = []struct{ name, command, tested, never string }{
	{"example [reflink](examples/provider-reflink/cleave-reflink)", "../../examples/provider-reflink/cleave-reflink", "XFS of Linux 6.1, jq 1.6", "an array of a vendor"},
}

// table is the README's.
func table(ps []provider) string {
	columns := []struct {
		head string
		has  func(p provider) bool
	}{
		{"splits a mirror", func(p provider) bool { return p.d.MirrorSplit }},
		{"snapshot", func(p provider) bool { return p.d.Snapshot }},
		{"several volumes at one instant", func(p provider) bool { return p.a.CanSplitGroup() && p.d.GroupOrdered }},
		{"armed beforehand", func(p provider) bool { return p.d.Arm }},
		{"resync of changes", func(p provider) bool { return p.d.Resync }},
		{"recovery in place", func(p provider) bool { return p.d.Rewrite }},
		{"revert", func(p provider) bool { return p.d.Revert }},
		{"break", func(p provider) bool { return p.d.Break }},
		{"changed regions", func(p provider) bool { return p.d.Changes }},
		{"LUNs of its own", func(p provider) bool { return p.a.CanExpose() }},
		{"read here", func(p provider) bool { return p.a.CanOpen() }},
	}
	var b strings.Builder
	b.WriteString("| array |")
	for _, c := range columns {
		b.WriteString(" " + c.head + " |")
	}
	b.WriteString(" tested with | never tried with |\n|---|" + strings.Repeat("---|", len(columns)+2) + "\n")
	for _, p := range ps {
		b.WriteString("| " + p.name + " |")
		for _, c := range columns {
			mark := "–"
			if c.has(p) {
				mark = "yes"
			}
			b.WriteString(" " + mark + " |")
		}
		fmt.Fprintf(&b, " %s | %s |\n", p.tested, p.never)
	}
	return b.String()
}

// The README tells of each provider what the provider itself tells.
func TestMatrixOfProviders(t *testing.T) {
	const begin, end = "<!-- providers: made by TestMatrixOfProviders -->\n", "<!-- /providers -->\n"
	file := "../../README.md"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	old, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the table: %s", file, begin)
	}
	want := table(providers(t))
	if old == want {
		return
	}
	if !*update {
		t.Errorf("%s differs from what the providers say of themselves (run with -update):\n%s", file, want)
		return
	}
	if err := os.WriteFile(file, bytes.Join([][]byte{[]byte(before), []byte(begin), []byte(want), []byte(end), []byte(after)}, nil), 0o644); err != nil {
		t.Fatal(err)
	}
}

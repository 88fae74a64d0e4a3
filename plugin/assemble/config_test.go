package assemble

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu"
	"github.com/cleave-san/cleave/plugin/dataplane"
)

func none(string) string { return "" }

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cleave.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestExampleShowsEveryKeyAndDefault keeps examples/cleave.yaml honest.
func TestExampleShowsEveryKeyAndDefault(t *testing.T) {
	c, err := Load("../../examples/cleave.yaml", none)
	if err != nil {
		t.Fatal(err)
	}
	want := defaults(none, 0)
	want.Arrays = []ArrayConfig{{Name: "main", Type: "embedded", Socket: "/run/cleave/array.sock"}}
	want.Writers = []WriterConfig{{Type: "qemu", VMs: []qemu.VM{
		{Name: "db", QMP: "/run/vm/db.qmp", Agent: "/run/vm/db.agent", Config: "/etc/vm/db.conf"},
		{Name: "legacy", QMP: "/run/vm/legacy.qmp"},
	}}}
	want.Hosts = []HostConfig{
		{"backup1", []string{"iqn.1993-08.org.debian:01:backup1"}},
		{"node2", []string{"iqn.1993-08.org.debian:01:node2-a", "iqn.1993-08.org.debian:01:node2-b"}},
	}
	want.Policy = PolicyConfig{Attempts: 3, GuestLimit: 2 * time.Minute, PauseLimit: 10 * time.Second, Lease: 24 * time.Hour}
	want.Recovery.Overlay = "/var/lib/cleave/views"
	want.DataPlane.Advertise = []string{}
	want.DataPlane.Portals = []string{"127.0.0.1:3260"}
	want.DataPlane.Initiators = []InitiatorConfig{{IQN: "iqn.1993-08.org.debian:01:host1", User: "host1", SecretFile: "/etc/cleave/host1.secret"}}
	want.DataPlane.Pools = map[string]string{"a": "/srv/pool-a", "b": "/srv/pool-b"}
	want.DataPlane.PoolLimits = map[string]PoolLimitConfig{"b": {Low: 20 << 30, LowPercent: 5}}
	if d := cmp.Diff(want, c); d != "" {
		t.Errorf("the example is not what it says (-want +got):\n%s", d)
	}
	text, err := os.ReadFile("../../examples/cleave.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var walk func(rt reflect.Type)
	walk = func(rt reflect.Type) {
		switch rt.Kind() {
		case reflect.Slice, reflect.Map:
			walk(rt.Elem())
		case reflect.Struct:
			for i := range rt.NumField() {
				key := rt.Field(i).Tag.Get("koanf")
				if key == "" {
					t.Errorf("%s.%s has no key", rt, rt.Field(i).Name)
				}
				if !strings.Contains(string(text), " "+key+":") && !strings.Contains(string(text), "\n"+key+":") && !strings.HasPrefix(key, "mutual") {
					t.Errorf("the example does not show %q", key)
				}
				walk(rt.Field(i).Type)
			}
		default: // a value
		}
	}
	walk(reflect.TypeFor[Config]())
}

func TestRelativePathsAndDefaults(t *testing.T) {
	path := write(t, "state: st\nsocket: run/c.sock\narrays: [{name: a, type: embedded}]\n"+
		"writers: [{type: qemu, vms: [{name: v, qmp: v.qmp}]}]\ndataPlane: {pools: {a: pool, b: /abs}, socket: a.sock}\n")
	c, err := Load(path, none)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(path)
	for got, want := range map[string]string{
		c.State: dir + "/st", c.Socket: dir + "/run/c.sock", c.Arrays[0].Socket: dir + "/a.sock",
		c.Writers[0].VMs[0].QMP: dir + "/v.qmp", c.DataPlane.Pools["a"]: dir + "/pool", c.DataPlane.Pools["b"]: "/abs",
		c.Recovery.Overlay: dir + "/st/views",
	} {
		if got != want {
			t.Errorf("path %q, want %q", got, want)
		}
	}
	if c.Writers[0].VMs[0].Agent != "" {
		t.Errorf("an agent came from nowhere: %q", c.Writers[0].VMs[0].Agent)
	}
	// A user other than root has places of its own.
	u := defaults(func(k string) string {
		return map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7"}[k]
	}, 7)
	if u.State != "/home/u/.local/state/cleave" || u.Socket != "/run/user/7/cleave/cleave.sock" {
		t.Errorf("places of a user: %q, %q", u.State, u.Socket)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"stat: /x", `line 1: stat: there is no such key; did you mean state?`},
		{"version: 1\n\npolicy:\n  guestlimit: 1m", `line 4: policy.guestlimit: there is no such key; did you mean guestLimit?`},
		{"writers:\n  - type: qemu\n    vms:\n      - name: a\n        qpm: /x", `line 5: writers[0].vms[0].qpm: there is no such key; did you mean qmp?`},
		{"frobnicate: 1", "line 1: frobnicate: there is no such key"},
		{"arrays: main", "line 1: arrays: want a list"},
		{"state: [a]", "line 1: state: want one value"},
		{"policy: 3", "line 1: policy: want keys with values"},
		{"dataPlane: {pools: [a]}", "dataPlane.pools: want names with values"},
		{"version: 2", "version: 2 is not known"},
		{"policy: {lease: soon}", "'policy.lease' time: invalid duration"},
		{"policy: {lease: -1h}", "policy.lease: -1h0m0s is negative"},
		{"recovery: {memory: 1GB}", `"1GB": want bytes, or a whole number`},
		{"recovery: {memory: 9999999TiB}", "want bytes"},
		{"a: b: c", "mapping values are not allowed"},
		{"state: /a\nstate: /b", "already defined"},
		{"- a\n- b", "line 1: : want keys"},
		{"arrays: [{type: embedded}]", "arrays[0].name: it is missing"},
		{"arrays: [{name: a, type: embedded}, {name: a, type: embedded}]", `arrays[1].name: "a" is arrays[0] already`},
		{"arrays: [{name: a b, type: embedded}]", "no space"},
		{"arrays: [{name: a, type: program}]", "arrays[0].command: []: want the absolute path"},
		{"arrays: [{name: a, type: program, command: [provider]}]", `arrays[0].command: ["provider"]: want the absolute path`},
		{"arrays: [{name: a, type: program, command: [/bin/p], socket: /s}]", "arrays[0].socket: it is for arrays of type embedded"},
		{"arrays: [{name: a, type: embedded, command: [/bin/p]}]", "arrays[0].command: it is for arrays of type program"},
		{"arrays: [{name: a, type: lvm, method: snapshot}]", "arrays[0]: volume group"},
		{"arrays: [{name: a, type: lvm, group: vg0}]", "arrays[0]: method"},
		{"arrays: [{name: a, type: lvm, group: vg0, method: snapshot, devices: [sda]}]", `arrays[0]: device "sda"`},
		{"arrays: [{name: a, type: lvm, group: vg0, method: snapshot, socket: /s}]", "arrays[0].socket: it is for arrays of type embedded"},
		{"arrays: [{name: a, type: embedded, group: vg0}]", "arrays[0].group: it is for arrays of type lvm"},
		{"arrays: [{name: a, type: rbd, pools: [vms], through: nbd}]", `arrays[0]: through "nbd": want qemu-storage-daemon, tgt or rbd-nbd`},
		{"arrays: [{name: a, type: cinder, endpoint: 'http://127.0.0.1/v3', project: ab12, through: nbd}]", `arrays[0]: through "nbd": want`},
		{"arrays: [{name: a, type: embedded, through: tgt}]", "arrays[0]: conf, user and through are for arrays of types rbd and cinder"},
		{"arrays: [{name: a, type: program, command: [/bin/p], environment: [hush]}]", "arrays[0].environment[0]: want NAME=VALUE"},
		{"writers: [{type: qemu, vms: [{name: a}]}]", "writers[0].vms[0].qmp: the path"},
		{"writers: [{type: qemu}, {type: qemu}]", "writers[1].type"},
		{"hosts: [{name: a}]", "hosts[0].initiators: there are none"},
		{"hosts: [{name: a, initiators: [x]}]", "hosts[0].initiators[0]: "},
		{"hosts: [{name: iqn.2026-01.a:b, initiators: ['iqn.2026-01.a:b']}]", "is the name of an initiator"},
		{"hosts: [{name: a, initiators: ['iqn.2026-01.a:b']}, {name: b, initiators: ['IQN.2026-01.A:B']}]", `hosts[1].initiators[0]: iqn.2026-01.a:b is host "a"'s already`},
		{"hosts: [{name: a, initiators: ['iqn.2026-01.a:b']}, {name: a, initiators: ['iqn.2026-01.a:c']}]", `hosts[1].name: "a" is hosts[0] already`},
		{"socket: /" + strings.Repeat("x", 120), "socket: /xxx"},
		{strings.Repeat("# filler\n", maxConfig/8), "no configuration"},
	} {
		path := write(t, tt.text)
		_, err := Load(path, none)
		if err == nil {
			t.Errorf("%.60q: no error, want %q", tt.text, tt.want)
			continue
		}
		if !errors.Is(err, orchestrator.ErrUsage) || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), path+": ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q: %v, want %q", tt.text, err, tt.want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml"), none); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestDataPlaneNeedsPools(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"version: 1", "dataPlane.pools: there is none"},
		{"dataPlane: {pools: {a: }}", "dataPlane.pools.a"},
		{"dataPlane: {pools: {a: /x}, portals: [192.0.2.1, 'localhost:3260']}", "dataPlane.portals[1]: portal"},
		{"dataPlane: {pools: {a: /x}, initiators: [{iqn: host}]}", "dataPlane.initiators[0].iqn"},
		{"dataPlane: {pools: {a: /x}, iqn: target}", "dataPlane.iqn"},
		{"dataPlane: {pools: {a: /x}}", ""},
	} {
		c, err := Load(write(t, tt.text), none)
		if err != nil {
			t.Fatalf("%q: %v", tt.text, err)
		}
		_, err = c.DataPlane.config()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.text, err, tt.want)
		}
	}
}

// FuzzLoad: whatever is in the file, Load answers, in one line.
func FuzzLoad(f *testing.F) {
	text, err := os.ReadFile("../../examples/cleave.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("? [a]: b"))
	f.Add([]byte("<<: {state: x}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c := defaults(none, 0)
		if err := parse(text, &c); err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("error of several lines: %q", err)
		}
	})
}

func TestPoolLimits(t *testing.T) {
	load := func(limits string) (dataplane.Config, error) {
		c, err := Load(write(t, "dataPlane: {pools: {a: pa, b: pb}, poolLimits: "+limits+"}\n"), none)
		if err != nil {
			return dataplane.Config{}, err
		}
		return c.DataPlane.config()
	}
	c, err := load("{a: {limit: 10GiB, low: 512MiB, lowPercent: -1}}")
	if want := map[string]embedded.PoolLimit{"a": {Limit: 10 << 30, LowBytes: 512 << 20, LowPercent: -1}}; err != nil || !reflect.DeepEqual(c.Limits, want) {
		t.Errorf("%+v, %v", c.Limits, err)
	}
	for limits, says := range map[string]string{
		"{c: {limit: 1GiB}}":      "dataPlane.poolLimits.c: there is no pool",
		"{a: {limit: -1}}":        "negative",
		"{a: {lowPercent: 101}}":  "more than 100",
		"{a: {limits: 1GiB}}":     "did you mean limit?",
		"{a: 10GiB}":              "want keys with values",
		"{a: {limit: 10 apples}}": "apples",
	} {
		if _, err := load(limits); !errors.Is(err, orchestrator.ErrUsage) || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", limits, err, says)
		}
	}
}

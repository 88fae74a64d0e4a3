package assemble

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/writer/qemu"
)

// Config is cleave.yaml. Paths in it are relative to the file's own directory.
type Config struct {
	// Version of the file's form: 1.
	Version int `koanf:"version"`
	// State is the directory of the control plane's journal and of the views
	// that it started. It survives restarts and belongs to nobody else.
	State string `koanf:"state"`
	// Socket is where the control plane answers.
	Socket string `koanf:"socket"`

	Arrays   []ArrayConfig  `koanf:"arrays"`
	Writers  []WriterConfig `koanf:"writers"`
	Hosts    []HostConfig   `koanf:"hosts"`
	Policy   PolicyConfig   `koanf:"policy"`
	Recovery RecoveryConfig `koanf:"recovery"`

	// DataPlane is what `cleave array` serves; the control plane does not read
	// it, except to start one by --with-array.
	DataPlane DataPlaneConfig `koanf:"dataPlane"`
}

// ArrayConfig is one storage array.
type ArrayConfig struct {
	Name string `koanf:"name"` // the operator's, as it appears in results
	Type string `koanf:"type"` // "embedded", "cinder", "lvm", "program" or "rbd"
	// Socket of the data plane, for type embedded.
	Socket string `koanf:"socket"`
	// Command is a program's absolute path and its arguments, and Environment,
	// NAME=VALUE each, is all that it gets of one; for type program.
	Command     []string `koanf:"command"`
	Environment []string `koanf:"environment"`
	// Group is a volume group, Method how its volumes are split, Devices the physical
	// volumes that lvm2 may look at (all that it would by itself if there are none),
	// and Room what a thick snapshot can hold of changes, in per cent; for type lvm.
	Group   string   `koanf:"group"`
	Method  string   `koanf:"method"`
	Devices []string `koanf:"devices"`
	Room    int      `koanf:"room"`
	// Cloud is an entry of clouds.yaml, CloudsFile the path of that, or Endpoint
	// and Project say where a Cinder without Keystone is. GroupType is for volumes
	// that are in no group, and Initiator the IQN by which this host reads
	// volumes; for type cinder.
	Cloud      string `koanf:"cloud"`
	CloudsFile string `koanf:"cloudsFile"`
	Endpoint   string `koanf:"endpoint"`
	Project    string `koanf:"project"`
	GroupType  string `koanf:"groupType"`
	Initiator  string `koanf:"initiator"`
	// Pools are the pools whose images are split, for type rbd. Conf is the path of
	// ceph.conf, User a Ceph user without "client.", and Through the program that
	// images are read by, for types rbd and cinder.
	Pools   []string `koanf:"pools"`
	Conf    string   `koanf:"conf"`
	User    string   `koanf:"user"`
	Through string   `koanf:"through"`
}

// WriterConfig is a host with its VMs. There is at most one of each type.
type WriterConfig struct {
	Type string    `koanf:"type"` // "qemu"
	VMs  []qemu.VM `koanf:"vms"`  // for type qemu
}

// PolicyConfig is what a request that leaves something open gets.
type PolicyConfig struct {
	Attempts   int           `koanf:"attempts"`
	GuestLimit time.Duration `koanf:"guestLimit"`
	PauseLimit time.Duration `koanf:"pauseLimit"`
	Lease      time.Duration `koanf:"lease"`
}

// RecoveryConfig bounds the workers that open guests' disks.
type RecoveryConfig struct {
	// Overlay is the directory for what is written to recovered views. Default:
	// in State.
	Overlay string `koanf:"overlay"`
	// OverlayLimit bounds it for each disk, in bytes. Default: 10 GiB.
	OverlayLimit int64 `koanf:"overlayLimit"`
	// Memory bounds each worker, in bytes. Default: 1 GiB.
	Memory int64 `koanf:"memory"`
}

// DataPlaneConfig is the embedded array and its iSCSI target.
type DataPlaneConfig struct {
	Socket string            `koanf:"socket"` // where it is administered
	State  string            `koanf:"state"`  // its own records; not in a pool
	Pools  map[string]string `koanf:"pools"`  // directories by name, one for each disk
	// PoolLimits say for a pool, by its name, what may be used of it.
	PoolLimits map[string]PoolLimitConfig `koanf:"poolLimits"`
	// Portals are where iSCSI is served, address:port, or address:port,group
	// for another portal group than 1; nothing else is listened on. Advertise are further addresses by which initiators reach them.
	Portals   []string `koanf:"portals"`
	Advertise []string `koanf:"advertise"`
	IQN       string   `koanf:"iqn"` // of its target
	// RequireCHAP refuses initiators without secrets.
	RequireCHAP bool              `koanf:"requireCHAP"`
	Initiators  []InitiatorConfig `koanf:"initiators"`
	ResyncRate  int64             `koanf:"resyncRate"` // bytes per second for all copying; 0: no limit
	// ViewTimeout is after which time a recovered view that does not answer
	// gives I/O errors.
	ViewTimeout time.Duration `koanf:"viewTimeout"`
}

// PoolLimitConfig bounds a pool, and says when room in it counts as low: when
// less than either is free.
type PoolLimitConfig struct {
	Limit      int64 `koanf:"limit"`      // bytes that mirrors may be made or grown into; 0: all of the file system
	Low        int64 `koanf:"low"`        // bytes
	LowPercent int   `koanf:"lowPercent"` // of the limit or the file system; 0 in both: 10; less: never
}

// InitiatorConfig is an initiator that may log in, beside those that were added
// by `cleave initiator add`.
type InitiatorConfig struct {
	IQN              string `koanf:"iqn"`
	User             string `koanf:"user"`       // CHAP; empty: none
	SecretFile       string `koanf:"secretFile"` // read at each start
	MutualUser       string `koanf:"mutualUser"` // by which the target proves itself
	MutualSecretFile string `koanf:"mutualSecretFile"`
}

// Defaults of what a configuration leaves out. A user other than root has its
// own places, so that nothing needs root to be tried.
func defaults(getenv func(string) string, uid int) Config {
	state, run := "/var/lib/cleave", "/run/cleave"
	if uid != 0 {
		home := getenv("HOME")
		state = filepath.Join(orElse(getenv("XDG_STATE_HOME"), filepath.Join(home, ".local/state")), "cleave")
		run = filepath.Join(orElse(getenv("XDG_RUNTIME_DIR"), filepath.Join(os.TempDir(), fmt.Sprintf("cleave-%d", uid))), "cleave")
	}
	return Config{
		Version: 1,
		State:   state,
		Socket:  filepath.Join(run, "cleave.sock"),
		Recovery: RecoveryConfig{
			OverlayLimit: 10 << 30,
			Memory:       1 << 30,
		},
		DataPlane: DataPlaneConfig{
			Socket:      filepath.Join(run, "array.sock"),
			State:       filepath.Join(state, "array"),
			IQN:         "iqn.2026-01.io.github.cleave-san:array",
			ViewTimeout: 10 * time.Second,
		},
	}
}

// Sockets are where the planes listen if nobody says otherwise.
func Sockets(getenv func(string) string) (control, array string) {
	c := defaults(getenv, os.Geteuid())
	return c.Socket, c.DataPlane.Socket
}

// resolve makes paths absolute, from dir.
func (c *Config) resolve(dir string) {
	paths := []*string{&c.State, &c.Socket, &c.Recovery.Overlay, &c.DataPlane.Socket, &c.DataPlane.State}
	for i := range c.Arrays {
		paths = append(paths, &c.Arrays[i].Socket, &c.Arrays[i].CloudsFile, &c.Arrays[i].Conf)
	}
	for i := range c.Writers {
		for j := range c.Writers[i].VMs {
			v := &c.Writers[i].VMs[j]
			paths = append(paths, &v.QMP, &v.Agent, &v.Config)
		}
	}
	for i := range c.DataPlane.Initiators {
		paths = append(paths, &c.DataPlane.Initiators[i].SecretFile, &c.DataPlane.Initiators[i].MutualSecretFile)
	}
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
	for name, p := range c.DataPlane.Pools {
		if p != "" && !filepath.IsAbs(p) {
			c.DataPlane.Pools[name] = filepath.Join(dir, p)
		}
	}
	for i := range c.Arrays { // the array on this host, unless it says otherwise
		if a := &c.Arrays[i]; a.Type == typeEmbedded && a.Socket == "" {
			a.Socket = c.DataPlane.Socket
		}
	}
	if len(c.DataPlane.Portals) == 0 {
		c.DataPlane.Portals = []string{fmt.Sprintf("127.0.0.1:%d", iscsi.DefaultPort)}
	}
	if c.Recovery.Overlay == "" {
		c.Recovery.Overlay = filepath.Join(c.State, "views")
	}
}

// check refuses keys of another type of array, and a program that can't be found.
func (a ArrayConfig) check(at string) error {
	for _, k := range []struct {
		key   string
		given bool
		of    string
	}{
		{"socket", a.Socket != "", typeEmbedded},
		{"command", len(a.Command) > 0, typeProgram}, {"environment", len(a.Environment) > 0, typeProgram},
		{"group", a.Group != "", typeLVM}, {"method", a.Method != "", typeLVM}, {"devices", len(a.Devices) > 0, typeLVM}, {"room", a.Room != 0, typeLVM},
	} {
		if k.given && a.Type != k.of {
			return usage("%s.%s: it is for arrays of type %s", at, k.key, k.of)
		}
	}
	if a.Conf+a.User+a.Through != "" && a.Type != typeRBD && a.Type != typeCinder {
		return usage("%s: conf, user and through are for arrays of types %s and %s", at, typeRBD, typeCinder)
	}
	switch a.Type {
	case typeProgram:
		if len(a.Command) == 0 || !filepath.IsAbs(a.Command[0]) {
			return usage("%s.command: %q: want the absolute path of a program, and its arguments", at, a.Command)
		}
	case typeCinder:
		if _, err := openCinder(a); err != nil {
			return usage("%s: %w", at, err)
		}
		if _, err := openRBD(ArrayConfig{Pools: []string{"any"}, Conf: a.Conf, Through: a.Through}); err != nil {
			return usage("%s: %w", at, err)
		}
	case typeRBD:
		if _, err := openRBD(a); err != nil {
			return usage("%s: %w", at, err)
		}
	case typeLVM:
		if _, err := openLVM(a, slog.New(slog.DiscardHandler)); err != nil {
			return usage("%s: %w", at, err)
		}
	}
	for i, e := range a.Environment {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return usage("%s.environment[%d]: want NAME=VALUE", at, i) // what stands there may be a secret
		}
	}
	return nil
}

// maxSocket is the longest path of a unix socket (unix(7): 108 bytes with the
// final zero).
const maxSocket = 107

// check says what makes no sense, with the key it stands at.
func (c *Config) check() error {
	if c.Version != 1 {
		return usage("version: %d is not known; this release reads version 1", c.Version)
	}
	sockets := map[string]string{"socket": c.Socket, "dataPlane.socket": c.DataPlane.Socket}
	names := map[string]string{}
	for i, a := range c.Arrays {
		at := fmt.Sprintf("arrays[%d]", i)
		if err := named(names, at, a.Name); err != nil {
			return err
		}
		if err := a.check(at); err != nil {
			return err
		}
		sockets[at+".socket"] = a.Socket
	}
	names = map[string]string{}
	types := map[string]bool{}
	for i, w := range c.Writers {
		if types[w.Type] {
			return usage("writers[%d].type: there is a writer of type %q already; name all its VMs there", i, w.Type)
		}
		types[w.Type] = true
		for j, vm := range w.VMs {
			at := fmt.Sprintf("writers[%d].vms[%d]", i, j)
			if err := named(names, at, vm.Name); err != nil {
				return err
			}
			if vm.QMP == "" {
				return usage("%s.qmp: the path of the monitor's socket is missing", at)
			}
			sockets[at+".qmp"], sockets[at+".agent"] = vm.QMP, vm.Agent
		}
	}
	if err := c.checkHosts(); err != nil {
		return err
	}
	for at, path := range sockets {
		if len(path) > maxSocket {
			return usage("%s: %s has %d bytes, a unix socket's path has at most %d", at, path, len(path), maxSocket)
		}
	}
	for at, d := range map[string]time.Duration{"guestLimit": c.Policy.GuestLimit, "pauseLimit": c.Policy.PauseLimit, "lease": c.Policy.Lease} {
		if d < 0 {
			return usage("policy.%s: %s is negative", at, d)
		}
	}
	if c.Policy.Attempts < 0 {
		return usage("policy.attempts: %d is negative", c.Policy.Attempts)
	}
	return nil
}

// named checks a name that has to be there once.
func named(seen map[string]string, at, name string) error {
	if name == "" {
		return usage("%s.name: it is missing", at)
	}
	if strings.ContainsAny(name, "/ \t\n") {
		return usage("%s.name: %q: a name has no space and no slash", at, name)
	}
	if other, ok := seen[name]; ok {
		return usage("%s.name: %q is %s already", at, name, other)
	}
	seen[name] = at
	return nil
}

// usage is an error in what the operator wrote.
func usage(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

type usageError struct{ err error }

func (e *usageError) Error() string        { return e.err.Error() }
func (e *usageError) Unwrap() error        { return e.err }
func (e *usageError) Is(target error) bool { return target == orchestrator.ErrUsage }
func (e *usageError) Hint() string {
	return "examples/cleave.yaml shows every key with its meaning"
}

func orElse(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

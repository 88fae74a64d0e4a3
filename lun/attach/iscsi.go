package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/process"
)

// LUN is a LUN as the host's own initiator, open-iscsi, reaches it: under the
// host's name. More than one portal makes a multipath map.
type LUN struct {
	Target  string   `json:"target"`
	Portals []string `json:"portals"` // host:port
	Number  int      `json:"number"`

	// User and Secret are for CHAP, both ways with the Mutual ones. Without a
	// User it is what the host's iscsid.conf says. They get into the node
	// record, a file of root's, and no further.
	User, MutualUser     string `json:"-"`
	Secret, MutualSecret []byte `json:"-"`

	// Identity is who the LUN must be, in the words of Identify, which is given
	// its VPD pages 0x83 and 0x80 without their headers.
	Identity string                             `json:"identity"`
	Identify func(page83, page80 []byte) string `json:"-"`
	// Begun is how many of the portals this host was made to know.
	Begun int `json:"begun"`
}

// forget leaves out what must not be kept.
func (l *LUN) forget() { l.Secret, l.MutualSecret, l.User, l.MutualUser = nil, nil, "", "" }

// kernel is the LUN's number as the kernel writes it: those that peripheral
// addressing can't hold are of flat space addressing, and show its mark
// (SAM-5 section 4.7.7).
func (l *LUN) kernel() int {
	if l.Number > 255 {
		return l.Number | 0x4000
	}
	return l.Number
}

// iscsiSupport says why the host's initiator can't, nil if it can.
func iscsiSupport() error {
	if _, err := exec.LookPath("iscsiadm"); err != nil {
		return fmt.Errorf("no iscsiadm here (Debian: open-iscsi): %w", ErrUnsupported)
	}
	if _, err := os.Stat("/sys/class/iscsi_transport/tcp"); err != nil {
		return fmt.Errorf("the kernel's iSCSI initiator is not there (`modprobe iscsi_tcp`): %w", ErrUnsupported)
	}
	sockets, err := os.ReadFile("/proc/net/unix")
	if err != nil || !strings.Contains(string(sockets), "@ISCSIADM_ABSTRACT_NAMESPACE") {
		return fmt.Errorf("iscsid does not run: %w", ErrUnsupported)
	}
	return nil
}

// openISCSI has open-iscsi log in, at each portal, and the kernel look at the
// one LUN alone. Sessions and node records that the host had before are left
// alone, and stand in the way: the LUN is a device of this host's already.
type openISCSI struct{ h *Host }

// deviceTimeout is for how long a disk or a map may take to appear.
const deviceTimeout = 30 * time.Second

func (m *openISCSI) attach(ctx context.Context, rec *record, r Request) error {
	l := rec.LUN
	if l.Identify == nil {
		l.Identify = r.LUN.Identify
	}
	portals, err := addresses(ctx, l.Portals)
	if err != nil {
		return err
	}
	l.Portals = portals
	if len(portals) > 1 {
		if err := run(ctx, "multipathd", "show", "daemon"); err != nil {
			return fmt.Errorf("several portals need multipathd: %w: %w", err, ErrUnsupported)
		}
	}
	for _, p := range portals {
		if s := sessionAt(l.Target, p); s != "" {
			return fmt.Errorf("this host is logged in to %s at %s already (%s): %w", l.Target, p, s, ErrBusy)
		}
		if err := run(ctx, "iscsiadm", "-m", "node", "-T", l.Target, "-p", p); err == nil {
			return fmt.Errorf("this host has a node record of %s at %s already: %w", l.Target, p, ErrBusy)
		}
	}
	if err := rec.save(); err != nil { // by their addresses marks are found again
		return err
	}
	if err := m.mark(l); err != nil {
		return err
	}
	for i, p := range portals {
		l.Begun = i + 1
		if err := rec.save(); err != nil {
			return err
		}
		if err := m.login(ctx, r.LUN, l, p); err != nil {
			return err
		}
		disk, err := m.disk(ctx, l, p)
		if err != nil {
			return err
		}
		if !r.Writable {
			if err := setReadOnly(disk); err != nil {
				return err
			}
		}
		rec.Paths = append(rec.Paths, disk)
	}
	rec.Identity = l.Identity
	if rec.Device, err = m.top(ctx, l); err != nil {
		return err
	}
	if !r.Writable {
		if err := setReadOnly(rec.Device); err != nil {
			return err
		}
	}
	f, err := os.Open(rec.Device)
	if err != nil {
		return err
	}
	defer f.Close()
	rec.Size, err = f.Seek(0, 2)
	return err
}

// login makes a node record, and logs in by it.
func (m *openISCSI) login(ctx context.Context, secrets, l *LUN, portal string) error {
	node := []string{"-m", "node", "-T", l.Target, "-p", portal}
	if err := run(ctx, "iscsiadm", append(node, "-o", "new")...); err != nil {
		return err
	}
	// What is set by "-o update" would be in an argument: seen by all.
	if err := editNode(nodeDirs, l.Target, portal, nodeSettings(secrets)); err != nil {
		return err
	}
	return run(ctx, "iscsiadm", append(node, "--login")...)
}

func nodeSettings(l *LUN) [][2]string {
	set := [][2]string{
		{"node.startup", "manual"},
		{"node.conn[0].startup", "manual"},
		{"node.session.scan", "manual"}, // the one LUN, no other
	}
	if l.User == "" {
		return set
	}
	set = append(set, [2]string{"node.session.auth.authmethod", "CHAP"},
		[2]string{"node.session.auth.username", l.User}, [2]string{"node.session.auth.password", string(l.Secret)})
	if l.MutualUser != "" {
		set = append(set, [2]string{"node.session.auth.username_in", l.MutualUser}, [2]string{"node.session.auth.password_in", string(l.MutualSecret)})
	}
	return set
}

// disk has the kernel look at the LUN, and makes sure who it is.
func (m *openISCSI) disk(ctx context.Context, l *LUN, portal string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	session := sessionAt(l.Target, portal)
	host := hostOf(session)
	if host == "" {
		return "", fmt.Errorf("no session with %s at %s after the login", l.Target, portal)
	}
	scan := filepath.Join("/sys/class/scsi_host", host, "scan")
	if err := os.WriteFile(scan, fmt.Appendf(nil, "0 0 %d", l.kernel()), 0); err != nil {
		return "", fmt.Errorf("looking for LUN %d at %s: %w", l.Number, portal, err)
	}
	for {
		if disk := diskOf(session, l.kernel()); disk != "" {
			if err := checkIdentity(disk, l); err != nil {
				return "", fmt.Errorf("LUN %d of %s at %s: %w", l.Number, l.Target, portal, err)
			}
			if _, err := os.Stat(disk); err == nil {
				return disk, nil
			}
		}
		if err := pause(ctx); err != nil {
			return "", fmt.Errorf("no disk for LUN %d of %s at %s: %w", l.Number, l.Target, portal, err)
		}
	}
}

// checkIdentity compares what the kernel has read of the LUN.
func checkIdentity(disk string, l *LUN) error {
	dir := filepath.Join("/sys/block", filepath.Base(disk), "device")
	var pages [2][]byte
	for i, name := range []string{"vpd_pg83", "vpd_pg80"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(b) > 4 {
			n := int(b[2])<<8 | int(b[3])
			pages[i] = b[4:min(len(b), 4+n)]
		}
	}
	if got := l.Identify(pages[0], pages[1]); got != l.Identity {
		return fmt.Errorf("it is %q, and should be %q: %w", got, l.Identity, ErrIdentity)
	}
	return nil
}

// top is the map over the disks, or the one disk if multipath leaves it alone.
func (m *openISCSI) top(ctx context.Context, l *LUN) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
	defer cancel()
	// Who looks at new disks has done so after that, or there is no udev.
	_ = run(ctx, "udevadm", "settle", "-t", "20")
	for {
		paths := m.paths(l)
		maps := map[string]int{}
		for _, p := range paths {
			maps[mapOn(p)]++
		}
		for dm, n := range maps {
			if dm != "" && n == len(l.Portals) {
				name := "/dev/mapper/" + mapName(dm)
				if resolved(name) == "/dev/"+dm { // udev has come to it
					return name, nil
				}
			}
		}
		if len(l.Portals) == 1 && len(paths) == 1 && mapOn(paths[0]) == "" {
			return paths[0], nil
		}
		if err := pause(ctx); err != nil {
			return "", fmt.Errorf("multipathd makes no map of %s: %w", strings.Join(paths, ", "), err)
		}
	}
}

// paths are the disks that there are, one a portal.
func (m *openISCSI) paths(l *LUN) (disks []string) {
	for _, p := range l.Portals[:l.Begun] {
		if d := diskOf(sessionAt(l.Target, p), l.kernel()); d != "" {
			disks = append(disks, d)
		}
	}
	return disks
}

func (m *openISCSI) keep(*record) error { return nil }

func (m *openISCSI) device(rec *record) (string, error) {
	if !rec.ofThisBoot() {
		return "", nil // what is there now is somebody else's
	}
	paths := m.paths(rec.LUN)
	for _, p := range paths {
		if dm := mapOn(p); dm != "" {
			return "/dev/" + dm, nil
		}
	}
	if len(paths) > 0 {
		return paths[0], nil
	}
	return "", nil
}

func (m *openISCSI) alive(rec *record) bool {
	for _, p := range m.paths(rec.LUN) {
		b, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(p), "device/state"))
		if err == nil && strings.TrimSpace(string(b)) == "running" {
			return true
		}
	}
	return false
}

// undo goes from the map down to the node records: a path that went before its
// map, or a LUN before its path, would leave a device that hangs.
func (m *openISCSI) undo(ctx context.Context, rec *record) error {
	ctx, cancel := context.WithTimeout(ctx, 2*deviceTimeout)
	defer cancel()
	l := rec.LUN
	if rec.ofThisBoot() {
		for _, p := range m.paths(l) {
			if err := m.removePath(ctx, p); err != nil {
				return err
			}
		}
	}
	for _, p := range l.Portals[:l.Begun] {
		node := []string{"-m", "node", "-T", l.Target, "-p", p}
		if sessionAt(l.Target, p) != "" && rec.ofThisBoot() {
			if err := run(ctx, "iscsiadm", append(node, "--logout")...); err != nil && sessionAt(l.Target, p) != "" {
				return err
			}
		}
		if err := run(ctx, "iscsiadm", append(node, "-o", "delete")...); err != nil && !noRecord(err) {
			return err
		}
	}
	for _, p := range l.Portals[:l.Begun] {
		for sessionAt(l.Target, p) != "" && rec.ofThisBoot() {
			if err := pause(ctx); err != nil {
				return fmt.Errorf("the session with %s at %s stays: %w", l.Target, p, err)
			}
		}
	}
	return m.unmark(l)
}

// removePath takes the map off a disk, and then the disk away. multipathd is told
// to forget it first, or it would make the map again.
func (m *openISCSI) removePath(ctx context.Context, disk string) error {
	name := filepath.Base(disk)
	if dm := mapOn(disk); dm != "" {
		if err := run(ctx, "multipathd", "del", "path", name); err != nil {
			m.h.o.Log.Debug("multipathd keeps a path", "path", name, "error", err)
		}
	}
	for mapOn(disk) != "" {
		if err := run(ctx, "multipath", "-f", mapName(mapOn(disk))); err != nil {
			m.h.o.Log.Debug("multipath map is not flushed yet", "error", err)
		}
		if mapOn(disk) == "" {
			break
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("multipath map %s stays: %w: %w", mapName(mapOn(disk)), ErrBusy, err)
		}
	}
	del := filepath.Join("/sys/block", name, "device/delete")
	if err := os.WriteFile(del, []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("taking %s away: %w", disk, err)
	}
	return nil
}

func (r *record) ofThisBoot() bool {
	boot, err := process.BootID()
	return err == nil && boot == r.Boot
}

// luns is where Rules find what is wanted of a path.
func (m *openISCSI) luns() string { return filepath.Join(m.h.o.Run, "luns") }

// marks are the files there, by name, which is the path's ID_PATH.
func (m *openISCSI) marks(l *LUN) map[string]string {
	path := "CLEAVE_ATTACHED=1\nUDISKS_IGNORE=1\nSYSTEMD_READY=0\nDM_UDEV_DISABLE_OTHER_RULES_FLAG=1\n"
	if len(l.Portals) == 1 {
		path += "UDEV_DISABLE_PERSISTENT_STORAGE_RULES_FLAG=1\n"
	}
	all := map[string]string{}
	for _, p := range l.Portals {
		host, port, err := net.SplitHostPort(p)
		if err != nil {
			continue
		}
		lun := strconv.Itoa(l.Number)
		if l.Number > 255 { // as path_id writes it
			lun = fmt.Sprintf("0x%04x000000000000", l.kernel())
		}
		all[fmt.Sprintf("ip-%s:%s-iscsi-%s-lun-%s", host, port, l.Target, lun)] = path
	}
	return all
}

func (m *openISCSI) mark(l *LUN) error {
	if err := os.MkdirAll(m.luns(), 0o700); err != nil {
		return err
	}
	for name, text := range m.marks(l) {
		if err := os.WriteFile(filepath.Join(m.luns(), name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (m *openISCSI) unmark(l *LUN) error {
	for name := range m.marks(l) {
		if err := os.Remove(filepath.Join(m.luns(), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// setReadOnly has the kernel refuse writes to a block device.
func setReadOnly(dev string) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, 1); err != nil {
		return fmt.Errorf("making %s read-only: %w", dev, err)
	}
	return nil
}

// pause waits a little, or says why there is no time left.
func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(100 * time.Millisecond):
		return nil
	}
}

// addresses resolves the names in portals: sysfs and udev know addresses.
func addresses(ctx context.Context, portals []string) (out []string, err error) {
	for _, p := range portals {
		host, port, err := net.SplitHostPort(p)
		if err != nil {
			return nil, err
		}
		if net.ParseIP(host) == nil {
			ips, err := net.DefaultResolver.LookupHost(ctx, host)
			if err != nil {
				return nil, err
			}
			host = ips[0]
		}
		out = append(out, net.JoinHostPort(host, port))
	}
	return out, nil
}

// failure is a command of the host's that failed.
type failure struct {
	status int
	text   string
}

func (f *failure) Error() string { return f.text }

// noRecord: iscsiadm's ISCSI_ERR_NO_OBJS_FOUND.
func noRecord(err error) bool {
	f := (*failure)(nil)
	return errors.As(err, &f) && f.status == 21
}

// run runs a command that holds no secret.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	status := -1
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		status = e.ExitCode()
	}
	text := strings.Join(strings.Fields(string(out[:min(len(out), 1000)])), " ")
	return &failure{status, fmt.Sprintf("%s %s: %v: %s", name, strings.Join(args, " "), err, text)}
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// qemuProgram is Debian's name for it (package qemu-system-x86).
const qemuProgram = "qemu-system-x86_64"

// Machine is a running VM. Its methods may be called at once from several
// goroutines.
type Machine struct {
	vm     VM
	accel  string
	dir    string
	keep   bool
	ports  map[int]int
	proc   *process
	ch     *channel
	booted time.Duration
	disks  []string
}

// Boot starts a VM and waits until it is set up: a DB VM answers SQL then. ctx
// bounds the boot only. If it fails, nothing is left behind, and the error ends
// with the last lines of the guest's console. The caller must Close the machine.
func Boot(ctx context.Context, v VM) (*Machine, error) {
	v, err := v.withDefaults()
	if err != nil {
		return nil, err
	}
	accel := v.Accel
	if accel == "" {
		if accel, err = Accel(ctx); err != nil {
			return nil, err
		}
	}
	k, err := findKernel()
	if err != nil {
		return nil, err
	}
	common, err := initramfs(k, v.Modules)
	if err != nil {
		return nil, err
	}
	template := ""
	if v.Kind == DB {
		if template, err = clusterTemplate(ctx); err != nil {
			return nil, err
		}
	}
	m := &Machine{vm: v, accel: accel, dir: v.Dir, keep: v.Dir != "", disks: v.devices()}
	if m.dir == "" {
		if m.dir, err = os.MkdirTemp("", "cleave-lab-"); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
	} else if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	if err := m.start(ctx, k, common, template); err != nil {
		err = fmt.Errorf("lab: booting VM %s (%s): %w%s", v.Name, accel, err, m.lastWords())
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Machine) start(ctx context.Context, k kernel, common, template string) error {
	if n := len(m.path(fileLabQMP)); n > 107 { // sun_path, unix(7)
		return fmt.Errorf("directory %s: its name is too long for a socket", m.dir)
	}
	if err := initrdFor(m.vm, common, template, m.path(fileInitrd)); err != nil {
		return err
	}
	for _, s := range []string{fileControl, fileQMP, fileLabQMP, fileAgent} {
		if err := os.Remove(m.path(s)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// The host's end listens before the guest can speak; see doc.go.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: m.path(fileControl), Net: "unix"})
	if err != nil {
		return err
	}
	defer l.Close()
	if m.ports, err = freePorts(m.vm.Forward); err != nil {
		return err
	}
	args, err := qemuArgs(m.vm, k, m.accel, m.dir, m.ports)
	if err != nil {
		return err
	}
	began := time.Now()
	if m.proc, err = startProcess(qemuProgram, args, m.path(fileQEMULog)); err != nil {
		return err
	}
	// Accept ends when QEMU does, or when ctx does.
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-m.proc.done:
		case <-ctx.Done():
		case <-over:
		}
		l.Close()
	}()
	conn, err := l.Accept()
	if err != nil {
		return errors.Join(ctx.Err(), errors.New("QEMU does not start"))
	}
	ch, hello := newChannel(conn)
	m.ch = ch
	if m.vm.Paused {
		return nil
	}
	select {
	case out, ok := <-hello:
		state := strings.TrimSpace(out.Stdout)
		switch {
		case !ok:
			return errors.New("the VM ended")
		case state != "ready":
			return fmt.Errorf("set-up in the guest: %s", state)
		}
	case <-m.proc.done:
		return errors.New("QEMU ended")
	case <-ctx.Done():
		return ctx.Err()
	}
	m.booted = time.Since(began)
	out, err := m.Run(ctx, "cat /run/lab/disks")
	m.disks = strings.Fields(out.Stdout)
	if err == nil && len(m.disks) != len(m.vm.Disks) {
		err = fmt.Errorf("%d disks in the guest, %d given: %q", len(m.disks), len(m.vm.Disks), m.disks)
	}
	return err
}

// freePorts finds a free port of 127.0.0.1 for each guest port.
func freePorts(guest []int) (map[int]int, error) {
	ports := map[int]int{}
	for _, g := range guest {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports[g] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// lastWords is what console and QEMU said last, for an error message.
func (m *Machine) lastWords() string {
	s := tail(m.path(fileConsole), 8)
	if q := tail(m.path(fileQEMULog), 4); q != "" {
		s += "\n" + q
	}
	if strings.TrimSpace(s) == "" {
		return ""
	}
	return "\n" + s
}

// Name is the VM's name.
func (m *Machine) Name() string { return m.vm.Name }

// Accel is "kvm" or "tcg".
func (m *Machine) Accel() string { return m.accel }

// BootTime is the time from the start of QEMU until the VM was set up.
func (m *Machine) BootTime() time.Duration { return m.booted }

// PID is QEMU's process id.
func (m *Machine) PID() int { return m.proc.cmd.Process.Pid }

// QMPSocket is a QMP socket that the lab itself does not use; it serves one
// client at a time.
func (m *Machine) QMPSocket() string { return m.path(fileQMP) }

// AgentSocket is the host's end of the guest agent's channel; it serves one
// client at a time.
func (m *Machine) AgentSocket() string { return m.path(fileAgent) }

// ConsoleLog is the file with the guest's serial console.
func (m *Machine) ConsoleLog() string { return m.path(fileConsole) }

// Record is the host's file that receives what the guest writes to its port
// /dev/virtio-ports/cleave.lab.record. A VM booted again in the same VM.Dir
// appends to it.
func (m *Machine) Record() string { return m.path(fileRecord) }

// Disks are the guest's names of the disks, in the order given to Boot. (Those of
// a VM that was booted paused are a guess.)
func (m *Machine) Disks() []string { return slices.Clone(m.disks) }

// Addr is the address on this host that leads to a guest port listed in
// VM.Forward, or "".
func (m *Machine) Addr(guestPort int) string {
	if p, ok := m.ports[guestPort]; ok {
		return net.JoinHostPort("127.0.0.1", strconv.Itoa(p))
	}
	return ""
}

// Done is closed when QEMU has ended.
func (m *Machine) Done() <-chan struct{} { return m.proc.done }

// Run runs a /bin/sh script in the guest as root and returns what it wrote (at
// most 4 MiB each way). The error is an *ExitError if its status is not 0. If
// ctx ends first the script goes on in the guest. A script that leaves something running
// must detach its output: `cmd >/dev/null 2>&1 &`.
func (m *Machine) Run(ctx context.Context, script string) (Output, error) {
	out, err := m.ch.run(ctx, script)
	if err != nil {
		return out, fmt.Errorf("VM %s: %w", m.vm.Name, err)
	}
	if out.Status != 0 {
		return out, &ExitError{VM: m.vm.Name, Output: out}
	}
	return out, nil
}

// SQL runs one statement by psql in the guest and returns its rows, fields
// separated by "|".
func (m *Machine) SQL(ctx context.Context, statement string) (string, error) {
	out, err := m.Run(ctx, "psql -XAtq -v ON_ERROR_STOP=1 -h /run/postgresql -U postgres postgres <<'END-OF-SQL'\n"+statement+"\nEND-OF-SQL")
	return strings.TrimSpace(out.Stdout), err
}

// AgentPing asks the guest agent whether it is there.
func (m *Machine) AgentPing(ctx context.Context) error {
	if err := call(ctx, m.AgentSocket(), false, "guest-ping", nil, nil); err != nil {
		return fmt.Errorf("VM %s: guest agent: %w", m.vm.Name, err)
	}
	return nil
}

// QMP runs one command on the lab's own QMP socket.
func (m *Machine) QMP(ctx context.Context, command string, args, result any) error {
	if err := call(ctx, m.path(fileLabQMP), true, command, args, result); err != nil {
		return fmt.Errorf("VM %s: QMP: %w", m.vm.Name, err)
	}
	return nil
}

// Shutdown ends the VM in good order: writers stop, file systems and volume
// groups close. If that takes longer than ctx allows, the VM is killed and the
// error says so.
func (m *Machine) Shutdown(ctx context.Context) error {
	// The answer never comes: the guest powers off within the script.
	_, err := m.ch.run(ctx, "/run/lab/down >/run/lab/down.log 2>&1 || { cat /run/lab/down.log >&2; exit 1; }")
	if err != nil && !errors.Is(err, errChannel) {
		m.Kill()
		return fmt.Errorf("VM %s: shutting down: %w", m.vm.Name, err)
	}
	select {
	case <-m.proc.done:
		return nil
	case <-ctx.Done():
		m.Kill()
		return fmt.Errorf("VM %s: shutting down: %w", m.vm.Name, ctx.Err())
	}
}

// Kill pulls the plug and waits until QEMU is gone.
func (m *Machine) Kill() { m.proc.kill() }

// Close kills the VM if it still runs and removes its directory, unless the
// caller chose it. It may be called more than once.
func (m *Machine) Close() error {
	if m.proc != nil {
		m.proc.kill()
	}
	if m.ch != nil {
		m.ch.close()
	}
	if m.keep {
		return nil
	}
	return os.RemoveAll(m.dir)
}

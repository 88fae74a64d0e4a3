package attach

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelNBD is the kernel's own NBD client on one end of a socket pair, and a
// helper that serves at the other. The connection has no name; the device
// tells whose it is by its backend identifier (Linux 5.14).
type kernelNBD struct{ h *Host }

// nbdSupport says why the kernel can't, nil if it can.
func nbdSupport() error {
	if _, err := os.Stat("/sys/block/nbd0"); err != nil {
		return fmt.Errorf("the kernel has no NBD client (`modprobe nbd`): %w", ErrUnsupported)
	}
	return nil
}

// backend is what a device says of where it comes from.
func backend(rec *record) string { return "cleave-" + rec.ID }

// nbdTimeout is after which time without an answer the kernel gives the
// connection up, seconds.
const nbdTimeout = 60

func (m *kernelNBD) attach(ctx context.Context, rec *record, r Request) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "nbd"), os.NewFile(uintptr(pair[1]), "nbd")
	defer ours.Close()
	said, err := m.h.launch(ctx, rec, spec{Open: r.Open, Writable: r.Writable}, theirs)
	theirs.Close()
	if err != nil {
		return err
	}
	size, flags, err := handshake(ours)
	if err != nil {
		return fmt.Errorf("NBD handshake with the helper: %w", err)
	}
	if size != said.Size {
		return fmt.Errorf("the helper serves %d bytes, and said %d", size, said.Size)
	}
	if rec.Device, err = nbdConnect(ours, size, said.Block, flags, backend(rec)); err != nil {
		return err
	}
	if on, err := m.device(rec); err != nil || on != rec.Device {
		return errors.Join(err, fmt.Errorf("%s does not say whose it is (Linux 5.14 does): %w", rec.Device, ErrUnsupported), nbdDisconnect(rec.Device))
	}
	return checkBlock(rec.Device, size, !r.Writable)
}

func (m *kernelNBD) keep(rec *record) error { return rec.keep() }

func (m *kernelNBD) alive(rec *record) bool { return !dying(rec.Helper) }

func (m *kernelNBD) device(rec *record) (string, error) {
	names, err := filepath.Glob("/sys/block/nbd*/backend")
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) == backend(rec) {
			return "/dev/" + filepath.Base(filepath.Dir(name)), nil
		}
	}
	return "", nil
}

func (m *kernelNBD) undo(ctx context.Context, rec *record) error {
	ctx, cancel := context.WithTimeout(ctx, 3*helperPatience)
	defer cancel()
	for asked := false; ; {
		dev, err := m.device(rec)
		if err != nil {
			return err
		}
		if dev == "" {
			break
		}
		if !asked {
			asked = true
			if err := nbdDisconnect(dev); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not disconnect: %w", dev, ErrBusy)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return m.h.endHelper(ctx, rec, helperPatience)
}

// handshake is the client's side of the newstyle negotiation, as far as the
// kernel's client needs it: no structured replies, NBD_OPT_EXPORT_NAME
// (doc/proto.md of github.com/NetworkBlockDevice/nbd, "Fixed newstyle
// negotiation").
func handshake(f *os.File) (size int64, flags uint16, err error) {
	const (
		magic, option       = 0x4e42444d41474943, 0x49484156454f5054
		fixed, noZeroes     = 1, 2
		exportName          = 1
		hello, answer, name = 18, 10, 16
	)
	c, err := net.FileConn(f)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, 0, err
	}
	be := binary.BigEndian
	var b [hello]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, 0, err
	}
	if be.Uint64(b[:]) != magic || be.Uint64(b[8:]) != option || be.Uint16(b[16:])&(fixed|noZeroes) != fixed|noZeroes {
		return 0, 0, fmt.Errorf("greeting is %x", b)
	}
	ask := be.AppendUint32(make([]byte, 0, 4+name), fixed|noZeroes)
	ask = be.AppendUint64(ask, option)
	ask = be.AppendUint32(ask, exportName)
	ask = be.AppendUint32(ask, 0)
	if _, err := c.Write(ask); err != nil {
		return 0, 0, err
	}
	if _, err := io.ReadFull(c, b[:answer]); err != nil {
		return 0, 0, err
	}
	n := be.Uint64(b[:])
	if n > 1<<62 {
		return 0, 0, fmt.Errorf("size of %d bytes", n)
	}
	return int64(n), be.Uint16(b[8:]), nil
}

// The kernel's NBD family (include/uapi/linux/nbd-netlink.h).
const (
	nbdFamily     = "nbd"
	nbdCmdConnect = 1
	nbdCmdDisconn = 2

	nbdAttrIndex     = 1
	nbdAttrSize      = 2
	nbdAttrBlock     = 3
	nbdAttrTimeout   = 4
	nbdAttrServer    = 5
	nbdAttrSockets   = 7
	nbdAttrBackend   = 10
	nbdSockItem      = 1
	nbdSockFD        = 1
	nbdGenlVersion   = 1
	genlCtrlFamilyID = 1 // CTRL_ATTR_FAMILY_ID
	genlCtrlName     = 2 // CTRL_ATTR_FAMILY_NAME
)

// nbdConnect hands a socket to the kernel, which chooses a free device.
func nbdConnect(f *os.File, size int64, block int, flags uint16, backend string) (string, error) {
	s, err := dialGenl(nbdFamily)
	if err != nil {
		return "", fmt.Errorf("the kernel's NBD client: %w: %w", err, ErrUnsupported)
	}
	defer s.close()
	ne := binary.NativeEndian
	u64 := func(v uint64) []byte { return ne.AppendUint64(nil, v) }
	fd := attr(nbdSockFD, ne.AppendUint32(nil, uint32(f.Fd())))
	var a []byte
	a = append(a, attr(nbdAttrSize, u64(uint64(size)))...)
	a = append(a, attr(nbdAttrBlock, u64(uint64(block)))...)
	a = append(a, attr(nbdAttrTimeout, u64(nbdTimeout))...)
	a = append(a, attr(nbdAttrServer, u64(uint64(flags)))...)
	a = append(a, attr(nbdAttrSockets|unix.NLA_F_NESTED, attr(nbdSockItem|unix.NLA_F_NESTED, fd))...)
	a = append(a, attr(nbdAttrBackend, append([]byte(backend), 0))...)
	answer, err := s.call(nbdCmdConnect, nbdGenlVersion, a)
	if err != nil {
		return "", fmt.Errorf("connecting the kernel's NBD client: %w", err)
	}
	index, ok := attrs(answer)[nbdAttrIndex]
	if !ok || len(index) < 4 {
		return "", errors.New("connecting the kernel's NBD client: it does not say which device")
	}
	return fmt.Sprintf("/dev/nbd%d", ne.Uint32(index)), nil
}

// nbdDisconnect asks for it; the device goes once its requests are answered.
func nbdDisconnect(dev string) error {
	var n uint32
	if _, err := fmt.Sscanf(dev, "/dev/nbd%d", &n); err != nil {
		return fmt.Errorf("%s is no NBD device", dev)
	}
	s, err := dialGenl(nbdFamily)
	if err != nil {
		return err
	}
	defer s.close()
	_, err = s.call(nbdCmdDisconn, nbdGenlVersion, attr(nbdAttrIndex, binary.NativeEndian.AppendUint32(nil, n)))
	if err != nil && !errors.Is(err, unix.EINVAL) { // not connected any more
		return fmt.Errorf("disconnecting %s: %w", dev, err)
	}
	return nil
}

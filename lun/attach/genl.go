package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// genl is a generic netlink socket to one family of the kernel's (netlink(7)).
type genl struct {
	fd     int
	family uint16
	seq    uint32
}

func dialGenl(family string) (*genl, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("generic netlink: %w", err)
	}
	g := &genl{fd: fd, family: unix.GENL_ID_CTRL}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	}
	var answer []byte
	if err == nil {
		answer, err = g.call(unix.CTRL_CMD_GETFAMILY, 1, attr(genlCtrlName, append([]byte(family), 0)))
	}
	if err != nil {
		g.close()
		return nil, fmt.Errorf("generic netlink family %s: %w", family, err)
	}
	id, ok := attrs(answer)[genlCtrlFamilyID]
	if !ok || len(id) < 2 {
		g.close()
		return nil, fmt.Errorf("generic netlink family %s: no number", family)
	}
	g.family = binary.NativeEndian.Uint16(id)
	return g, nil
}

func (g *genl) close() { _ = unix.Close(g.fd) }

// call sends one command and returns the attributes of its answer, none if it
// was merely acknowledged.
func (g *genl) call(cmd, version uint8, attributes []byte) ([]byte, error) {
	g.seq++
	ne := binary.NativeEndian
	n := unix.NLMSG_HDRLEN + unix.GENL_HDRLEN + len(attributes)
	b := ne.AppendUint32(make([]byte, 0, n), uint32(n))
	b = ne.AppendUint16(b, g.family)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = ne.AppendUint32(b, g.seq)
	b = ne.AppendUint32(b, 0)
	b = append(b, cmd, version, 0, 0)
	b = append(b, attributes...)
	if err := unix.Sendto(g.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	var answer []byte
	buf := make([]byte, 16<<10)
	for {
		n, _, err := unix.Recvfrom(g.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		for m := buf[:n]; len(m) >= unix.NLMSG_HDRLEN; {
			size := int(ne.Uint32(m))
			if size < unix.NLMSG_HDRLEN || size > len(m) {
				return nil, fmt.Errorf("message of %d bytes in %d", size, len(m))
			}
			kind, body := ne.Uint16(m[4:]), m[unix.NLMSG_HDRLEN:size]
			switch {
			case ne.Uint32(m[8:]) != g.seq: // of an earlier call
			case kind == unix.NLMSG_ERROR && len(body) >= 4:
				if e := int32(ne.Uint32(body)); e != 0 {
					return nil, unix.Errno(-e)
				}
				return answer, nil
			case kind == g.family && len(body) >= unix.GENL_HDRLEN:
				answer = append([]byte(nil), body[unix.GENL_HDRLEN:]...)
			}
			m = m[min(align4(size), len(m)):]
		}
	}
}

// nlaTypeMask leaves out the flags of an attribute's type.
const nlaTypeMask = 0x3fff

func align4(n int) int { return (n + 3) &^ 3 }

// attr is one attribute, padded.
func attr(kind int, data []byte) []byte {
	ne := binary.NativeEndian
	b := ne.AppendUint16(make([]byte, 0, align4(unix.NLA_HDRLEN+len(data))), uint16(unix.NLA_HDRLEN+len(data)))
	b = ne.AppendUint16(b, uint16(kind))
	b = append(b, data...)
	return append(b, make([]byte, align4(len(b))-len(b))...)
}

// attrs takes a run of attributes apart, as far as it makes sense.
func attrs(b []byte) map[int][]byte {
	ne := binary.NativeEndian
	all := map[int][]byte{}
	for len(b) >= unix.NLA_HDRLEN {
		n := int(ne.Uint16(b))
		if n < unix.NLA_HDRLEN || n > len(b) {
			break
		}
		all[int(ne.Uint16(b[2:]))&nlaTypeMask] = b[unix.NLA_HDRLEN:n]
		b = b[min(align4(n), len(b)):]
	}
	return all
}

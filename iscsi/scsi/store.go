package scsi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/cleave-san/cleave/lun"
)

// Store keeps what initiators have asked to survive a restart: the persistent
// reservations registered with APTPL=1 (SPC-4 section 5.12, preserving persistent
// reservations and registrations). Whoever serves
// units hands one in; without it APTPL is refused. Its methods may be called at
// once for different identities.
type Store interface {
	// Load returns what the last Save of an identity was given; nothing and no
	// error if that was nothing or there was none.
	Load(lun.Identity) ([]byte, error)

	// Save replaces what is kept, in one step and durably: when it returns nil
	// a crash can't undo it, and the command that caused it is answered only
	// then. Nothing to keep means forget it. After an error either
	// the old or the new state may be found.
	Save(id lun.Identity, state []byte) error
}

// ErrReservations says that the state found in a Store can't be used. Serving the
// unit without it would let in whom a cluster has fenced off.
var ErrReservations = errors.New("persistent reservations can't be restored")

// The saved state: magic, version, type, number of registrations, index of the
// holder (0xffff: none); for each registration key, target port, ISID, length
// of the name and the name; CRC-32C of it all.
const (
	stateMagic   = "CLPR"
	stateVersion = 1
	stateHead    = 12
	noHolder     = 0xffff
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (p *reservations) encode() []byte {
	b := append([]byte(stateMagic), 0, stateVersion, 0, p.kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.regs)))
	holder := uint16(noHolder)
	for i, r := range p.regs {
		if p.kind != 0 && !allRegistrants(p.kind) && r.nexusID == p.holder {
			holder = uint16(i)
		}
	}
	b = binary.BigEndian.AppendUint16(b, holder)
	for _, r := range p.regs {
		b = binary.BigEndian.AppendUint64(b, r.key)
		b = binary.BigEndian.AppendUint16(b, r.target)
		b = append(b, r.ISID[:]...)
		b = append(b, byte(len(r.Name)))
		b = append(b, r.Name...)
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeReservations reads what encode made. Everything in it is checked: a state
// that is damaged in any way is ErrReservations.
func decodeReservations(b []byte) (*reservations, error) {
	bad := func(format string, args ...any) (*reservations, error) {
		return nil, fmt.Errorf("%w: %s", ErrReservations, fmt.Sprintf(format, args...))
	}
	if len(b) < stateHead+4 || string(b[:4]) != stateMagic {
		return bad("not a saved state")
	}
	if v := binary.BigEndian.Uint16(b[4:]); v != stateVersion {
		return bad("version %d, this program knows %d", v, stateVersion)
	}
	body := b[:len(b)-4]
	if binary.BigEndian.Uint32(b[len(body):]) != crc32.Checksum(body, castagnoli) {
		return bad("wrong checksum")
	}
	p := &reservations{kind: body[7], aptpl: true}
	n, holder := int(binary.BigEndian.Uint16(body[8:])), binary.BigEndian.Uint16(body[10:])
	rest := body[stateHead:]
	for range n {
		if len(rest) < 17 || len(rest) < 17+int(rest[16]) {
			return bad("ends within a registration")
		}
		var r registration
		r.key, r.target = binary.BigEndian.Uint64(rest), binary.BigEndian.Uint16(rest[8:])
		r.ISID, r.Name = [6]byte(rest[10:16]), string(rest[17:17+int(rest[16])])
		rest = rest[17+int(rest[16]):]
		if r.key == 0 || r.target == 0 || r.Name == "" || strings.Contains(r.Name, "\x00") || p.find(r.nexusID) != nil {
			return bad("registration of %.40q", r.Name)
		}
		p.regs = append(p.regs, r)
	}
	switch single := p.kind != 0 && !allRegistrants(p.kind); {
	case len(rest) > 0 || n == 0 || n > maxRegistrations:
		return bad("%d registrations, %d bytes after them", n, len(rest))
	case p.kind != 0 && !validKind(p.kind), single != (holder != noHolder), single && int(holder) >= n:
		return bad("type %d held by %d of %d", p.kind, holder, n)
	case single:
		p.holder = p.regs[holder].nexusID
	}
	return p, nil
}

// loadReservations takes up what was saved before a restart.
func (u *Unit) loadReservations() error {
	u.pr.Store(&reservations{})
	if u.opt.Store == nil {
		return nil
	}
	b, err := u.opt.Store.Load(u.opt.Identity)
	if err != nil {
		return fmt.Errorf("LUN %s: %w: %w", u.opt.Identity, ErrReservations, err)
	}
	if len(b) == 0 {
		return nil
	}
	p, err := decodeReservations(b)
	if err != nil {
		return fmt.Errorf("LUN %s: %w", u.opt.Identity, err)
	}
	u.pr.Store(p)
	return nil
}

func (u *Unit) saveReservations(p *reservations) error {
	if !p.aptpl {
		return u.opt.Store.Save(u.opt.Identity, nil)
	}
	return u.opt.Store.Save(u.opt.Identity, p.encode())
}

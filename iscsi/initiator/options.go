package initiator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/mask"
)

// Options say which LUN is meant and how to reach it. Zero values mean the
// defaults given.
type Options struct {
	// Portals are the host:port or host that are tried in turn, at Open and
	// whenever the connection was lost.
	Portals []string
	Target  iscsi.Name
	LUN     int // 0 to 16383

	// Initiator is the name to log in under.
	Initiator iscsi.Name

	// CHAP proves who we are, and with MutualSecret has the target prove who it
	// is; it is then offered alone. Nil: no authentication.
	CHAP *mask.Credentials

	HeaderDigest, DataDigest Digest

	// Identity is what the LUN must be, as Disk.ID writes it; a LUN that is
	// another fails Open with ErrIdentity. Empty: whatever is there.
	Identity string

	ReadOnly bool // refuse writes on this side

	// Depth is how many commands may be under way at once; more wait.
	// Default 128, at most 1024.
	Depth int

	// Timeout bounds the login at one portal, and the wait for the answer to
	// one command, after which the connection is given up. Default 30 s.
	Timeout time.Duration

	// Recovery is for how long one request is repeated: while there is no
	// connection, and while the LUN is busy. Default 60 s.
	Recovery time.Duration

	// NopInterval is how long the target may be silent before it is asked
	// whether it lives, and how long it may then take; and for how long the
	// identity of the LUN is believed. Default 10 s.
	NopInterval time.Duration

	// MaxTransfer is the most bytes moved by one command. Default 1 MiB.
	MaxTransfer int

	// Dial makes connections; nil: TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Logger gets a line per lost connection and reconnection; nil: none.
	Logger *slog.Logger
}

// Digest is how much CRC32C is wanted on a part of every PDU.
type Digest uint8

const (
	DigestOnDemand Digest = iota // only if the target insists
	DigestPreferred
	DigestRequired
)

// offer is the value list for the negotiation (RFC 7143 section 13.1).
func (d Digest) offer() string {
	switch d {
	case DigestPreferred:
		return "CRC32C,None"
	case DigestRequired:
		return "CRC32C"
	default:
		return "None,CRC32C"
	}
}

// Limits of what may be asked.
const (
	maxDepth    = 1024
	maxTransfer = 16 << 20
)

func (o Options) withDefaults() (Options, error) {
	if len(o.Portals) == 0 {
		return o, errors.New("no portal is given")
	}
	portals := make([]string, len(o.Portals))
	for i, p := range o.Portals {
		var err error
		if portals[i], err = iscsi.HostPort(p); err != nil {
			return o, err
		}
	}
	o.Portals = portals
	if _, err := iscsi.ParseName(string(o.Initiator)); err != nil {
		return o, fmt.Errorf("name to log in under: %w", err)
	}
	if o.LUN < 0 || o.LUN > iscsi.MaxLUN {
		return o, fmt.Errorf("LUN %d: must be 0 to %d", o.LUN, iscsi.MaxLUN)
	}
	if o.CHAP != nil {
		if err := o.CHAP.Check(); err != nil {
			return o, err
		}
	}
	if o.Depth <= 0 {
		o.Depth = 128
	}
	o.Depth = min(o.Depth, maxDepth)
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Recovery <= 0 {
		o.Recovery = time.Minute
	}
	if o.NopInterval <= 0 {
		o.NopInterval = 10 * time.Second
	}
	if o.MaxTransfer <= 0 {
		o.MaxTransfer = 1 << 20
	}
	o.MaxTransfer = min(o.MaxTransfer, maxTransfer)
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// lunField is a LUN number in eight bytes: peripheral device addressing up to
// 255, flat space addressing above (SAM-5 section 4.7.7).
func lunField(n int) uint64 {
	if n < 256 {
		return uint64(n) << 48
	}
	return uint64(0x4000|n) << 48
}

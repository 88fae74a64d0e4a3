// Package mask says who sees what: for each target and initiator, which logical
// unit numbers, and whether they may be written; and for each initiator, the
// CHAP credentials that it has to prove.
//
// Nothing is visible by default. A mask may be set before the LUN it names
// exists, and should be: the LUN then appears to exactly those who may have it.
// A LUN that goes away takes its grants with it (Forget), so that a number used
// again later is visible to nobody until somebody says so.
//
// A Table decides; it keeps no sessions and does no I/O. All its methods may be
// called at once from several goroutines.
package mask

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cleave-san/cleave/iscsi"
)

// Anyone in the place of an initiator's name stands for every initiator. It is
// never implied: somebody has to write it.
const Anyone iscsi.Name = "*"

// MaxLUN is the highest number that a Grant may name: the peripheral and flat
// space addressing methods of SAM-5 section 4.7.7 hold 14 bits.
const MaxLUN = iscsi.MaxLUN

// Grant lets an initiator see one LUN of a target.
type Grant struct {
	LUN      uint16
	ReadOnly bool // writes answered with DATA PROTECT, whatever the LUN itself allows
}

// MinSecret is the shortest CHAP secret accepted, in bytes: RFC 7143 section
// 12.1.4 wants 96 bits where IPsec does not protect the connection.
const MinSecret = 12

// MaxSecret is the longest CHAP secret accepted, in bytes.
const MaxSecret = 256

// ErrSecret says that a secret is too short, too long, or used in both
// directions. The secret itself is never in the error.
var ErrSecret = errors.New("unusable CHAP secret")

// Credentials are what an initiator proves at login, and, where MutualSecret is
// not empty, what the target proves to it in return.
type Credentials struct {
	User   string // CHAP_N that the initiator sends
	Secret []byte `json:"-"`

	MutualUser   string // CHAP_N that the target sends back
	MutualSecret []byte `json:"-"` // empty: one-way
}

// String hides the secrets, so that no log line or %v shows them.
func (c Credentials) String() string {
	return fmt.Sprintf("{user %q, mutual %t}", c.User, len(c.MutualSecret) > 0)
}

// GoString hides the secrets from %#v.
func (c Credentials) GoString() string { return c.String() }

// Check reports whether the credentials can be used, as ErrSecret if not.
func (c Credentials) Check() error {
	switch {
	case c.User == "" || len(c.User) > 255:
		return fmt.Errorf("CHAP user of %d bytes: want 1 to 255", len(c.User))
	case len(c.Secret) < MinSecret || len(c.Secret) > MaxSecret:
		return fmt.Errorf("%w: %d bytes, want %d to %d", ErrSecret, len(c.Secret), MinSecret, MaxSecret)
	case len(c.MutualSecret) == 0:
		return nil
	case len(c.MutualSecret) < MinSecret || len(c.MutualSecret) > MaxSecret:
		return fmt.Errorf("%w: mutual secret of %d bytes, want %d to %d", ErrSecret, len(c.MutualSecret), MinSecret, MaxSecret)
	case slices.Equal(c.Secret, c.MutualSecret):
		// RFC 7143 section 9.2.1: the same secret both ways lets a
		// reflected challenge answer itself.
		return fmt.Errorf("%w: the same one in both directions", ErrSecret)
	case c.MutualUser == "" || len(c.MutualUser) > 255:
		return fmt.Errorf("mutual CHAP user of %d bytes: want 1 to 255", len(c.MutualUser))
	}
	return nil
}

type pair struct{ target, initiator iscsi.Name }

// Table holds the masks and credentials of one server. The zero value is ready
// and shows nothing to anybody.
type Table struct {
	mu     sync.RWMutex
	grants map[pair][]Grant
	creds  map[iscsi.Name]Credentials
}

// Set replaces what initiator sees of target; no grants: nothing. Grants for the
// same LUN twice, or beyond MaxLUN, are refused and change nothing.
func (t *Table) Set(target, initiator iscsi.Name, grants ...Grant) error {
	g := slices.Clone(grants)
	slices.SortFunc(g, func(a, b Grant) int { return int(a.LUN) - int(b.LUN) })
	for i := range g {
		if g[i].LUN > MaxLUN {
			return fmt.Errorf("mask of %s for %s: LUN %d, at most %d", target, initiator, g[i].LUN, MaxLUN)
		}
		if i > 0 && g[i].LUN == g[i-1].LUN {
			return fmt.Errorf("mask of %s for %s: LUN %d is named twice", target, initiator, g[i].LUN)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.grants == nil {
		t.grants = map[pair][]Grant{}
	}
	if len(g) == 0 {
		delete(t.grants, pair{target, initiator})
	} else {
		t.grants[pair{target, initiator}] = g
	}
	return nil
}

// Forget withdraws every grant for one LUN of a target.
func (t *Table) Forget(target iscsi.Name, lun uint16) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, g := range t.grants {
		if p.target != target {
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(g), func(g Grant) bool { return g.LUN == lun })
		if len(rest) == 0 {
			delete(t.grants, p)
		} else {
			t.grants[p] = rest
		}
	}
}

// ForgetTarget withdraws every grant for a target.
func (t *Table) ForgetTarget(target iscsi.Name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.grants {
		if p.target == target {
			delete(t.grants, p)
		}
	}
}

// View is what an initiator sees of a target, in order of LUN: its own grants,
// and those for Anyone where it has none of its own for that LUN.
func (t *Table) View(target, initiator iscsi.Name) []Grant {
	t.mu.RLock()
	defer t.mu.RUnlock()
	own, any := t.grants[pair{target, initiator}], t.grants[pair{target, Anyone}]
	out := slices.Clone(own)
	for _, g := range any {
		if !slices.ContainsFunc(own, func(o Grant) bool { return o.LUN == g.LUN }) {
			out = append(out, g)
		}
	}
	slices.SortFunc(out, func(a, b Grant) int { return int(a.LUN) - int(b.LUN) })
	return out
}

// Sees reports whether an initiator has any grant on a target. It is what
// SendTargets and login ask.
func (t *Table) Sees(target, initiator iscsi.Name) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.grants[pair{target, initiator}]) > 0 || len(t.grants[pair{target, Anyone}]) > 0
}

// Known reports whether an initiator has any grant on any target.
func (t *Table) Known(initiator iscsi.Name) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for p := range t.grants {
		if p.initiator == initiator || p.initiator == Anyone {
			return true
		}
	}
	return false
}

// SetCredentials says what an initiator, or Anyone who has none of their own,
// has to prove; nil takes it back. The secrets are copied.
func (t *Table) SetCredentials(initiator iscsi.Name, c *Credentials) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c == nil {
		delete(t.creds, initiator)
		return nil
	}
	if err := c.Check(); err != nil {
		return fmt.Errorf("credentials of %s: %w", initiator, err)
	}
	if t.creds == nil {
		t.creds = map[iscsi.Name]Credentials{}
	}
	for other, o := range t.creds {
		// RFC 7143 section 9.2.1: no secret is used in both directions.
		if other != initiator && (slices.Equal(o.Secret, c.MutualSecret) || len(o.MutualSecret) > 0 && slices.Equal(o.MutualSecret, c.Secret)) {
			return fmt.Errorf("credentials of %s: %w: one that %s has in the other direction", initiator, ErrSecret, other)
		}
	}
	k := *c
	k.Secret, k.MutualSecret = slices.Clone(c.Secret), slices.Clone(c.MutualSecret)
	t.creds[initiator] = k
	return nil
}

// Credentials are what an initiator has to prove. guarded reports whether
// anybody has to prove anything here: where it is true an initiator without
// credentials is challenged like any other, so that the challenge does not tell
// who is known.
func (t *Table) Credentials(initiator iscsi.Name) (c Credentials, found, guarded bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	guarded = len(t.creds) > 0
	if c, found = t.creds[initiator]; !found {
		c, found = t.creds[Anyone]
	}
	return c, found, guarded
}

// Package initiator reaches a LUN of any iSCSI target without the kernel's
// help, as a lun.Device (RFC 7143; the commands are those of SPC-4 and SBC-3).
//
//	d, err := initiator.Open(ctx, initiator.Options{
//		Portals: []string{"192.0.2.10:3260"}, Target: "iqn.…", LUN: 1, Initiator: "iqn.…"})
//	d.ReadAt(p, off)
//
// Open logs in, finds out what the LUN is and can do, and notes its identity
// (VPD page 0x83 and the unit serial number). Discover lists the targets behind
// a portal, LUNs the numbers behind a target.
//
// Promises:
//
//   - many requests are under way at once on one connection; in the steady state
//     a request allocates nothing. Who waits for an answer reads it himself, from
//     a Queue for many requests without a goroutine for each;
//   - what the target says is bounded and checked: tags, offsets, lengths,
//     sequence numbers, digests, residuals. One that breaks the protocol loses
//     the connection, and after a bounded time the request fails;
//   - a connection that breaks is made again, at the portals in turn, for at most
//     Options.Recovery; before a byte is trusted the LUN must have the identity
//     it had, else every request fails with ErrIdentity. The same is asked after
//     unit attentions, and every Options.NopInterval: some targets exchange a LUN
//     within a session without a word, and what they do in between is not seen;
//   - reads are repeated after that. So are writes, while nobody has been told
//     that they are done: the session is reinstated (RFC 7143 section 6.3.5), so
//     that the target has dropped the commands of the old one, and a write that
//     was not answered has no later one that it could overtake. Where the new
//     session belongs to another portal group the old one may live on: then they
//     fail with ErrUncertain;
//   - Sync fails with ErrCacheLost if writes were acknowledged before a
//     reconnection and not synced, unless the LUN has no volatile cache or says
//     that only the connection was lost (I_T NEXUS LOSS): nothing else excludes
//     that the target was restarted. Acknowledged writes are not kept for that
//     case: whoever needs them stable writes them again, or tells.
//
// Secrets are never in an error or a log line.
package initiator

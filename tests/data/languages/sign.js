// Messages and signatures as JavaScript makes them: node sign.js > javascript.json
const { createHmac } = require('node:crypto');

const secret = 'languages-secret-with-32-or-so-bytes';
const client = 'RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W';
let timestamp = 1667980513000;

function fixture(kind, signed) {
  const at = String(timestamp++);
  const encoded = Buffer.from(`${at}.${client}.${signed}`, 'utf8').toString('base64url');
  const signature = createHmac('sha256', secret).update(encoded).digest('hex');
  return { kind, secret, client_id: client, timestamp: at, signed: Buffer.from(signed, 'utf8').toString('base64'), signature };
}

const refund = {
  tiki_transaction_id: '221115TIKIVIP-235784371-1668488254',
  transaction_amount: 35000.50,
  transaction_id: '8A43B011/0EC9-4AA5',
  reason: 'Khách hàng đổi ý – hoàn tiền <b>&</b> 💸 "\u2028"',
  request_id: 'r/1',
};
const ipn = {
  reference_transaction_id: 't-1',
  transaction_amount: 1000.0,
  transaction_id: 'p-1',
  status: 'SUCCESS',
  partner_banking_method: null,
  not_listed: { rate: 1e21, ratio: 0.1 + 0.2, list: [] },
};
const order = {
  order: {
    id: '141857488587784201',
    extra: 'url=https://example.test/đơn?a=1&b=2;x=y',
    status: 'online_paid',
    grand_total: 0,
    reference_id: '0',
    tiki_order_id: '1001059779',
    tiki_order_code: '308714458',
  },
  message_id: '141939182305017886',
  message_type: 'notification',
  message_created_at: new Date(1667980513000).toISOString(),
};
const query = new URLSearchParams({ location: 'Hà Nội', order_id: '88062110977884170', sign: '+&/' });

console.log(JSON.stringify([
  fixture('refund', JSON.stringify(refund)),
  fixture('transaction_ipn', JSON.stringify(ipn)),
  fixture('order_ipn', JSON.stringify(order, null, 2)),
  fixture('path', `/order?${query}`),
  fixture('path', `/order?location=${encodeURIComponent('Hà Nội')}`),
], null, 1));

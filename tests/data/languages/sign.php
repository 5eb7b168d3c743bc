<?php
// Messages and signatures as PHP makes them: php sign.php > php.json

const SECRET = 'languages-secret-with-32-or-so-bytes';
const CLIENT = 'RLCKb7Ae9kx4DXtXsCWjnDXtggFnM43W';
$timestamp = 1667980513000;

function fixture(string $kind, string $signed): array
{
    global $timestamp;
    $at = (string) $timestamp++;
    $encoded = rtrim(strtr(base64_encode($at . '.' . CLIENT . '.' . $signed), '+/', '-_'), '=');
    return [
        'kind' => $kind,
        'secret' => SECRET,
        'client_id' => CLIENT,
        'timestamp' => $at,
        'signed' => base64_encode($signed),
        'signature' => hash_hmac('sha256', $encoded, SECRET),
    ];
}

$refund = [
    'tiki_transaction_id' => '221115TIKIVIP-235784371-1668488254',
    'transaction_amount' => 35000.50,
    'transaction_id' => '8A43B011/0EC9-4AA5',
    'reason' => "Khách hàng đổi ý – hoàn tiền <b>&</b> 💸 \"\u{2028}\"",
    'request_id' => 'r/1',
];
$ipn = [
    'reference_transaction_id' => 't-1',
    'transaction_amount' => 1000.0,
    'transaction_id' => 'p-1',
    'status' => 'SUCCESS',
    'partner_banking_method' => null,
    'not_listed' => ['rate' => 1e21, 'ratio' => 0.1 + 0.2, 'list' => []],
];
$order = [
    'order' => [
        'id' => '141857488587784201',
        'extra' => 'url=https://example.test/đơn?a=1&b=2;x=y',
        'status' => 'online_paid',
        'grand_total' => 0,
        'reference_id' => '0',
        'tiki_order_id' => '1001059779',
        'tiki_order_code' => '308714458',
    ],
    'message_id' => '141939182305017886',
    'message_type' => 'notification',
    'message_created_at' => gmdate(DATE_ATOM, 1667980513),
];
$query = ['location' => 'Hà Nội', 'order_id' => '88062110977884170', 'sign' => '+&/'];

echo json_encode([
    fixture('refund', json_encode($refund)),
    fixture('refund', json_encode($refund, JSON_UNESCAPED_SLASHES | JSON_UNESCAPED_UNICODE)),
    fixture('transaction_ipn', json_encode($ipn, JSON_PRESERVE_ZERO_FRACTION)),
    fixture('order_ipn', json_encode($order, JSON_PRETTY_PRINT)),
    fixture('path', '/order?' . http_build_query($query)),
    fixture('path', '/order?location=' . rawurlencode('Hà Nội')),
], JSON_PRETTY_PRINT), "\n";
